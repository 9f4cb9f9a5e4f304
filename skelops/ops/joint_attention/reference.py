"""joint_attention in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _heads(x: Tensor, heads: int, axis: str) -> Tensor:
    """(B, S, C', R, P): P are the positions that attend, R what is summed over beside the channels."""
    x = x.unflatten(1, (heads, x.shape[1] // heads))
    return x if axis == "joints" else x.mT


def joint_attention(
    source: Tensor, target: Tensor, static: Tensor | None, alpha: Tensor | None, heads: int, axis: str, activation: str,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    source, target = (_heads(x, heads, axis) for x in (source, target))
    score = scale * torch.einsum("bscrv,bscrw->bsvw", source, target)
    active = torch.tanh(score) if activation == "tanh" else torch.softmax(score, 2)
    if static is None and alpha is None:
        return active, active.new_empty(0)
    attention = active if alpha is None else alpha[:, None, None] * active
    return (attention if static is None else attention + static).to(active.dtype), active


def joint_attention_backward(
    grad: Tensor, source: Tensor, target: Tensor, active: Tensor, alpha: Tensor | None, heads: int, axis: str,
    activation: str, scale: float, needs_source: bool, needs_target: bool, needs_static: bool, needs_alpha: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    source, target = (_heads(x, heads, axis) for x in (source, target))
    of_active = grad if alpha is None else alpha[:, None, None] * grad
    if activation == "tanh":
        of_score = of_active * (1 - active * active)
    else:
        of_score = active * (of_active - (active * of_active).sum(2, keepdim=True))
    of_score = (scale * of_score).to(source.dtype)

    def to_map(gradient: Tensor) -> Tensor:
        return (gradient if axis == "joints" else gradient.mT).flatten(1, 2)

    none = grad.new_empty(0)
    return (
        to_map(torch.einsum("bsvw,bscrw->bscrv", of_score, target)) if needs_source else none,
        to_map(torch.einsum("bsvw,bscrv->bscrw", of_score, source)) if needs_target else none,
        grad.sum(0) if needs_static else none,
        (grad * active).sum((0, 2, 3)) if needs_alpha else none,
    )
