"""ema_update_: one call over a parameter list against the loop of MoCo code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work

MOMENTUM = 0.999


def loop(targets: list[Tensor], sources: list[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            target.copy_(target * MOMENTUM + source * (1 - MOMENTUM))
    return tuple(targets)


def fused(targets: list[Tensor], sources: list[Tensor]) -> tuple[Tensor, ...]:
    skelops.ema_update_(targets, sources, MOMENTUM)
    return tuple(targets)


def case(name: str, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, headline: bool = False) -> Case:
    def inputs() -> tuple[Any, ...]:
        return tuple([torch.randn(s).to(dtype) for s in shapes] for _ in range(2))

    elements = sum(torch.Size(s).numel() for s in shapes)
    return Case(
        op="ema_update_",
        name=name,
        dtype=dtype,
        inputs=inputs,
        skelops=fused,
        eager=loop,
        forward=Work(3.0 * dtype.itemsize * elements, 3.0 * elements),
        headline=headline,
    )


def st_gcn(width: int) -> list[tuple[int, ...]]:
    """Shapes of a ten-block ST-GCN's parameters: about 110 tensors."""
    shapes: list[tuple[int, ...]] = []
    for c in (1, 1, 1, 1, 2, 2, 2, 4, 4, 4):
        c *= width
        shapes += [
            (3 * c, c, 1, 1),
            (3 * c,),
            (c,),
            (c,),
            (c, c, 9, 1),
            (c,),
            (c,),
            (c,),
            (3, 25, 25),
            (c, c, 1, 1),
            (c,),
        ]
    return shapes


def cases(device: str = "cpu") -> Iterator[Case]:
    shapes: dict[str, list[tuple[int, ...]]] = {
        "ST-GCN width=64": st_gcn(64),
        "ST-GCN width=16": st_gcn(16),
        "one tensor of 16 M": [(1 << 24,)],
        "300 tensors of 64": [(64,)] * 300,
    }
    if device == "cuda":
        shapes |= {"ST-GCN width=128": st_gcn(128), "one tensor of 256 M": [(1 << 28,)]}
    for dtype in GPU_DTYPES if device == "cuda" else (torch.float32,):
        for name, sizes in shapes.items():
            yield case(name, sizes, dtype, headline=name == "ST-GCN width=64" and dtype == torch.float32)
