"""batch_norm_affine in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _moments(total: Tensor, square_sum: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance; zeros where there is no element."""
    n = max(count, 1) if isinstance(count, int) else count.clamp(min=1)
    mean = total / n
    return mean, (square_sum / n - mean.square()).clamp(min=0)


def batch_norm_affine(
    total: Tensor,
    square_sum: Tensor,
    count: int | Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, variance = _moments(total, square_sum, count)
    inverse = (variance + eps).rsqrt()
    scale = inverse if weight is None else inverse * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    n = max(count - 1, 1) if isinstance(count, int) else (count - 1).clamp(min=1)
    return scale.to(dtype), shift.to(dtype), mean.to(dtype), (variance * (count / n)).to(dtype)


def batch_norm_affine_backward(
    grad_scale: Tensor,
    grad_shift: Tensor,
    total: Tensor,
    square_sum: Tensor,
    count: int,
    weight: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    n = max(count, 1)
    mean, variance = _moments(total, square_sum, count)
    inverse = (variance + eps).rsqrt()
    grad_shift = grad_shift.to(torch.float64)
    # shift = bias - mean * scale, scale = weight * inverse, inverse = (E[x^2] - E[x]^2 + eps)^-1/2
    of_scale = grad_scale - mean * grad_shift
    scale, grad_inverse = (inverse, of_scale) if weight is None else (inverse * weight, of_scale * weight)
    grad_square = -0.5 * grad_inverse * inverse**3
    grad_mean = -scale * grad_shift - 2 * mean * grad_square
    grad_weight = total.new_empty(0, dtype=dtype) if weight is None else (of_scale * inverse).to(dtype)
    return grad_mean / n, grad_square / n, grad_weight
