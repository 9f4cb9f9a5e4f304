"""temporal_max_pool in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from skelops._stats import with_stats_gradient, with_sums

_aten = torch.ops.aten


def _pool(x: Tensor, scale: Tensor, shift: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """The activated map, its maxima, and where these lie."""
    a = (scale[:, None, None] * x + shift[:, None, None]).relu_()
    return a, *_aten.max_pool2d_with_indices(a, [3, 1], [stride, 1], [1, 0])


def temporal_max_pool(
    x: Tensor, scale: Tensor, shift: Tensor, stride: int, stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _, y, _ = _pool(x, scale, shift, stride)
    return with_sums(y.to(x.dtype), stats)


def temporal_max_pool_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    grad_sum: Tensor | None,
    grad_square_sum: Tensor | None,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    a, y, places = _pool(x, scale, shift, stride)
    grad = with_stats_gradient(grad.to(scale.dtype), y, grad_sum, grad_square_sum)
    # What autograd calls, which itself is not there where a compiler or autocast calls the op.
    grad_a = _aten.max_pool2d_with_indices_backward(grad, a, [3, 1], [stride, 1], [1, 0], [1, 1], False, places)
    through = torch.where(a <= 0, 0, grad_a)
    return (
        (through * scale[:, None, None]).to(x.dtype),
        (through * x).sum((0, 2, 3)),
        through.sum((0, 2, 3)),
    )
