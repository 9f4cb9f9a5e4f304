"""channel_sums against two sums of the map and its square."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work


def eager(x: Tensor) -> tuple[Tensor, ...]:
    wide = x.float()
    return wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))


def case(B: int, C: int, T: int, V: int, layout: str, dtype: torch.dtype, headline: bool = False) -> Case:
    def inputs() -> tuple[Tensor, ...]:
        x = torch.randn(B, C, T, V).to(dtype).contiguous(memory_format=getattr(torch, layout))
        return (x.requires_grad_(),)

    elements = B * C * T * V
    size = elements * torch.finfo(dtype).bits // 8
    return Case(
        op="channel_sums",
        name=f"B={B} C={C} T={T} V={V} {layout.removesuffix('_format')}",
        dtype=dtype,
        inputs=inputs,
        skelops=skelops.channel_sums,
        eager=eager,
        forward=Work(size, 3 * elements),
        backward=Work(3 * size, 5 * elements),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    for dtype in GPU_DTYPES if device == "cuda" else (torch.float32, torch.bfloat16):
        for layout in ("channels_last", "contiguous_format"):
            yield case(64 if device == "cpu" else 256, 64, 50, 25, layout, dtype, headline=dtype == torch.float32)
            yield case(64, 256, 13, 25, layout, dtype)
            yield case(64, 14, 25, 25, layout, dtype)
            yield case(1, 64, 50, 25, layout, dtype)
