"""batch_norm_affine against its formula in float64, with the update of the running statistics: costs of calls alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import skelops
from benchmarks.case import Case, Work

COUNT = 64 * 50 * 25


def eager(
    sum: Tensor, square_sum: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor
) -> tuple[Tensor, Tensor]:
    mean = sum / COUNT
    variance = square_sum / COUNT - mean.square()
    with torch.no_grad():
        running_mean.lerp_(mean.float(), 0.1)
        running_var.lerp_((variance * (COUNT / (COUNT - 1))).float(), 0.1)
    scale = weight.float() * (variance + 1e-5).rsqrt().float()
    return scale, bias.float() - mean.float() * scale


def fused(total: Tensor, square_sum: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    return skelops.batch_norm_affine(total, square_sum, COUNT, *others)


def case(C: int, dtype: torch.dtype) -> Case:
    def inputs() -> tuple[Tensor, ...]:
        sums = torch.randn(C, dtype=torch.float64), COUNT * (1 + torch.rand(C, dtype=torch.float64))
        parameters = torch.rand(C).to(dtype), torch.rand(C).to(dtype)
        return (*(x.requires_grad_() for x in (*sums, *parameters)), torch.zeros(C), torch.ones(C))

    return Case(
        op="batch_norm_affine",
        name=f"C={C}",
        dtype=dtype,
        inputs=inputs,
        skelops=fused,
        eager=eager,
        forward=Work(C * (2 * 8 + 6 * 4), 12 * C),
        backward=Work(C * (6 * 8 + 11 * 4), 30 * C),
        headline=C == 64 and dtype == torch.float32,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for C in (3, 16, 64, 128, 256, 512):
            yield case(C, dtype)
