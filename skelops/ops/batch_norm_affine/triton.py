"""batch_norm_affine in Triton, in float64."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._triton import launch, tile


@triton.jit
def _moments(total, square_sum, c, here, n, eps):
    mean = tl.load(total + c, mask=here, other=0.0) / n
    variance = tl.load(square_sum + c, mask=here, other=0.0) / n - mean * mean
    variance = tl.where(variance < 0.0, 0.0, variance)
    return mean, variance, 1.0 / tl.sqrt(variance + tl.cast(eps, tl.float64))


@triton.jit
def _forward(total, square_sum, weight, bias, scale, shift, mean, variance, C, n, unbiased, eps, BC: tl.constexpr):
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    here = c < C
    n = tl.cast(n, tl.float64)
    mu, biased, factor = _moments(total, square_sum, c, here, n, eps)
    if weight is not None:
        factor *= tl.load(weight + c, mask=here, other=0.0).to(tl.float64)
    offset = -mu * factor
    if bias is not None:
        offset += tl.load(bias + c, mask=here, other=0.0).to(tl.float64)
    tl.store(scale + c, factor.to(tl.float32), mask=here)
    tl.store(shift + c, offset.to(tl.float32), mask=here)
    tl.store(mean + c, mu.to(tl.float32), mask=here)
    tl.store(variance + c, (biased * (n / tl.cast(unbiased, tl.float64))).to(tl.float32), mask=here)


@triton.jit
def _backward(
    grad_scale, grad_shift, total, square_sum, weight, grad_sum, grad_square_sum, grad_weight, C, n, eps,
    BC: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    here = c < C
    n = tl.cast(n, tl.float64)
    mean, _, inverse = _moments(total, square_sum, c, here, n, eps)
    of_shift = tl.load(grad_shift + c, mask=here, other=0.0).to(tl.float64)
    of_scale = tl.load(grad_scale + c, mask=here, other=0.0).to(tl.float64) - mean * of_shift
    if weight is not None:
        # By way of float32: not every conversion of float64 exists.
        tl.store(grad_weight + c, (of_scale * inverse).to(tl.float32), mask=here)
        factor = tl.load(weight + c, mask=here, other=0.0).to(tl.float64)
        of_scale *= factor
        of_shift *= factor
    of_square = -0.5 * of_scale * inverse * inverse * inverse
    tl.store(grad_sum + c, (-inverse * of_shift - 2.0 * mean * of_square) / n, mask=here)
    tl.store(grad_square_sum + c, of_square / n, mask=here)


def batch_norm_affine(
    total: Tensor,
    square_sum: Tensor,
    count: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    outputs: list[Tensor],
) -> None:
    C, sizes = total.numel(), tile("batch_norm_affine", total.device)
    inputs = (p if p is None else p.contiguous() for p in (total, square_sum, weight, bias))
    n, unbiased = max(count, 1), max(count - 1, 1)
    launch(_forward, (triton.cdiv(C, sizes["BC"]),), total.device, *inputs, *outputs, C, n, unbiased, eps, **sizes)


def batch_norm_affine_backward(
    grad_scale: Tensor,
    grad_shift: Tensor,
    total: Tensor,
    square_sum: Tensor,
    count: int,
    weight: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    outputs: list[Tensor],
) -> None:
    C, sizes = total.numel(), tile("batch_norm_affine", total.device)
    inputs = (p if p is None else p.contiguous() for p in (grad_scale, grad_shift, total, square_sum, weight))
    grad_sum, grad_square_sum, grad_weight = outputs
    launch(
        _backward, (triton.cdiv(C, sizes["BC"]),), total.device, *inputs, grad_sum, grad_square_sum,
        None if weight is None else grad_weight, C, max(count, 1), eps, **sizes,
    )  # fmt: skip
