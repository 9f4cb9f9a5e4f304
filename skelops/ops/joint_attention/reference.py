"""joint_attention in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _heads(x: Tensor, heads: int, frames: bool) -> Tensor:
    """(B, S, C', R, P): P are the positions that attend, R what is summed over beside the channels."""
    x = x.unflatten(1, (heads, x.shape[1] // heads))
    return x.mT if frames else x


def joint_attention(
    source: Tensor, target: Tensor, static: Tensor | None, alpha: Tensor | None, heads: int, frames: bool,
    softmax: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    source, target = (_heads(x, heads, frames) for x in (source, target))
    score = scale * torch.einsum("bscrv,bscrw->bsvw", source, target)
    active = torch.softmax(score, 2) if softmax else torch.tanh(score)
    if static is None and alpha is None:
        return active, active.new_empty(0)
    attention = active if alpha is None else alpha[:, None, None] * active
    return (attention if static is None else attention + static).to(active.dtype), active


def joint_attention_backward(
    grad: Tensor, source: Tensor, target: Tensor, active: Tensor, alpha: Tensor | None, heads: int, frames: bool,
    softmax: bool, scale: float, needs_source: bool, needs_target: bool, needs_static: bool, needs_alpha: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    source, target = (_heads(x, heads, frames) for x in (source, target))
    of_active = grad if alpha is None else alpha[:, None, None] * grad
    if softmax:
        of_score = active * (of_active - (active * of_active).sum(2, keepdim=True))
    else:
        of_score = of_active * (1 - active * active)
    of_score = (scale * of_score).to(source.dtype)

    def to_map(gradient: Tensor) -> Tensor:
        return (gradient.mT if frames else gradient).flatten(1, 2)

    none = grad.new_empty(0)
    return (
        to_map(torch.einsum("bsvw,bscrw->bscrv", of_score, target)) if needs_source else none,
        to_map(torch.einsum("bsvw,bscrv->bscrw", of_score, source)) if needs_target else none,
        grad.sum(0) if needs_static else none,
        (grad * active).sum((0, 2, 3)) if needs_alpha else none,
    )
