"""temporal_max_pool in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from skelops._stats import with_stats_gradient, with_sums


def _pool(a: Tensor, stride: int) -> Tensor:
    return max_pool2d(a, (3, 1), (stride, 1), (1, 0))


def temporal_max_pool(
    x: Tensor, scale: Tensor, shift: Tensor, stride: int, stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    z = scale[:, None, None] * x + shift[:, None, None]
    y = _pool(z.relu_(), stride).to(x.dtype)
    return with_sums(y, stats)


def temporal_max_pool_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    grad_sum: Tensor | None,
    grad_square_sum: Tensor | None,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaf, wide = x.detach().requires_grad_(), scale.dtype
        a = (scale[:, None, None] * leaf + shift[:, None, None]).relu()
        y = _pool(a, stride)
    grad = with_stats_gradient(grad.to(wide), y.detach(), grad_sum, grad_square_sum)
    (grad_a,) = torch.autograd.grad(y, a, grad)
    through = torch.where(a.detach() > 0, grad_a, 0)
    return (
        (through * scale[:, None, None]).to(x.dtype),
        (through * x).sum((0, 2, 3)).to(wide),
        through.sum((0, 2, 3)).to(wide),
    )
