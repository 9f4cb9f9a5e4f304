"""squeeze_pool against three means of the same map, as SDS-CL, STD-CL and CTR-GCN take them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work


def eager(x: Tensor) -> tuple[Tensor, ...]:
    return x.mean(3), x.mean(2), x.mean((2, 3))


def case(B: int, C: int, T: int, V: int, layout: str, dtype: torch.dtype, headline: bool = False) -> Case:
    memory_format = getattr(torch, layout)

    def inputs() -> tuple[Tensor, ...]:
        return (torch.randn(B, C, T, V).to(dtype).contiguous(memory_format=memory_format).requires_grad_(),)

    size = torch.finfo(dtype).bits // 8
    elements, means = B * C * T * V, B * C * (T + V + 1)
    return Case(
        op="squeeze_pool",
        name=f"B={B} C={C} T={T} V={V} {layout.removesuffix('_format')}",
        dtype=dtype,
        inputs=inputs,
        skelops=skelops.squeeze_pool,
        eager=eager,
        forward=Work(size * (elements + means), 2 * elements),
        backward=Work(2 * size * (elements + means), 4 * elements),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    if device == "cuda":
        for dtype in GPU_DTYPES:
            for layout in ("contiguous_format", "channels_last"):
                yield case(256, 64, 50, 25, layout, dtype, headline=True)
                yield case(256, 256, 16, 25, layout, dtype, headline=layout == "contiguous_format")
                yield case(256, 128, 32, 25, layout, dtype)
                yield case(256, 3, 300, 25, layout, dtype)
                yield case(64, 64, 300, 25, layout, dtype)
                yield case(64, 128, 75, 17, layout, dtype)
                yield case(1, 256, 300, 25, layout, dtype)
        return
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("contiguous_format", "channels_last"):
            yield case(256, 64, 50, 25, layout, dtype, headline=dtype == torch.float32)
            yield case(64, 64, 50, 25, layout, dtype)
            yield case(128, 256, 13, 25, layout, dtype, headline=dtype == torch.float32 and layout != "channels_last")
            yield case(256, 3, 300, 25, layout, dtype)
            yield case(256, 16, 64, 25, layout, dtype)
            yield case(32, 256, 16, 20, layout, dtype)
            yield case(16, 128, 75, 17, layout, dtype)
            yield case(8, 64, 1, 25, layout, dtype)
            yield case(4, 10, 13, 18, layout, dtype)
            yield case(1, 256, 300, 25, layout, dtype)
            yield case(1, 64, 50, 25, layout, dtype)
            yield case(1, 3, 300, 17, layout, dtype)
            yield case(1, 3, 1, 17, layout, dtype)
