"""ema_update_: one call over a parameter list against the loop of MoCo code and torch's foreach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import skelops
from benchmarks.case import Case, Work

MOMENTUM = 0.999


def loop(targets: list[Tensor], sources: list[Tensor]) -> Tensor:
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            target.copy_(target * MOMENTUM + source * (1 - MOMENTUM))
    return targets[0]


def foreach(targets: list[Tensor], sources: list[Tensor]) -> Tensor:
    with torch.no_grad():
        torch._foreach_lerp_(targets, sources, 1 - MOMENTUM)
    return targets[0]


def fused(targets: list[Tensor], sources: list[Tensor]) -> Tensor:
    skelops.ema_update_(targets, sources, MOMENTUM)
    return targets[0]


def case(name: str, shapes: list[tuple[int, ...]], headline: bool = False) -> Case:
    def inputs() -> tuple[Any, ...]:
        return [torch.randn(s) for s in shapes], [torch.randn(s) for s in shapes]

    elements = sum(torch.Size(s).numel() for s in shapes)
    return Case(
        op="ema_update_",
        name=name,
        dtype=torch.float32,
        inputs=inputs,
        skelops=fused,
        eager=loop,
        forward=Work(12.0 * elements, 3.0 * elements),
        others={"foreach_lerp": foreach},
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


def cases() -> Iterator[Case]:
    yield case("ST-GCN width=64", st_gcn(64), headline=True)
    yield case("ST-GCN width=16", st_gcn(16))
    yield case("one tensor of 16 M", [(1 << 24,)])
    yield case("300 tensors of 64", [(64,)] * 300)
