"""temporal_max_pool against a normalisation, a ReLU and max_pool2d."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work


def eager(x: Tensor, scale: Tensor, shift: Tensor, stride: int) -> Tensor:
    activated = torch.relu(scale[:, None, None] * x + shift[:, None, None]).to(x.dtype)
    return max_pool2d(activated, (3, 1), (stride, 1), (1, 0))


def case(B: int, C: int, T: int, V: int, stride: int, layout: str, dtype: torch.dtype, headline: bool = False) -> Case:
    def inputs() -> tuple[Tensor, ...]:
        x = torch.randn(B, C, T, V).to(dtype).contiguous(memory_format=getattr(torch, layout))
        return tuple(part.requires_grad_() for part in (x, torch.rand(C) + 0.5, torch.randn(C)))

    size, read, written = torch.finfo(dtype).bits // 8, B * C * T * V, B * C * -(-T // stride) * V
    return Case(
        op="temporal_max_pool",
        name=f"B={B} C={C} T={T} V={V} stride={stride} {layout.removesuffix('_format')}",
        dtype=dtype,
        inputs=inputs,
        skelops=partial(skelops.temporal_max_pool, stride=stride),
        eager=partial(eager, stride=stride),
        forward=Work(size * (read + written), 5 * read),
        backward=Work(size * (3 * read + 2 * written), 14 * read),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    batch = 16 if device == "cpu" else 128
    for dtype in GPU_DTYPES if device == "cuda" else (torch.float32, torch.bfloat16):
        for layout in ("channels_last", "contiguous_format"):
            yield case(batch, 16, 64, 25, 1, layout, dtype, headline=dtype == torch.float32)
            yield case(batch, 32, 64, 25, 2, layout, dtype)
            yield case(batch, 64, 16, 25, 1, layout, dtype)
