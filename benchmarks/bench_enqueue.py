"""enqueue_: the ring write against MoCo's slice assignment with its host read of the pointer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import skelops
from benchmarks.case import Case, Work


def moco(queue: Tensor, keys: Tensor, pointer: Tensor) -> Tensor:
    start, n = int(pointer), keys.shape[0]
    queue[:, start : start + n] = keys.T
    pointer[0] = (start + n) % queue.shape[1]
    return pointer


def fused(queue: Tensor, keys: Tensor, pointer: Tensor) -> Tensor:
    skelops.enqueue_(queue, keys, pointer)
    return pointer


def case(n: int, D: int, Q: int, headline: bool = False) -> Case:
    def inputs() -> tuple[Any, ...]:
        return torch.zeros(D, Q), normalize(torch.randn(n, D), dim=1), torch.zeros(1, dtype=torch.int64)

    return Case(
        op="enqueue_",
        name=f"n={n} D={D} Q={Q}",
        dtype=torch.float32,
        inputs=inputs,
        skelops=fused,
        eager=moco,
        forward=Work(8.0 * n * D),
        compiles=False,  # it reads the pointer on the host: a graph per value
        headline=headline,
    )


def cases() -> Iterator[Case]:
    yield case(128, 128, 32768, headline=True)
    for n, D, Q in ((1, 128, 32768), (64, 64, 1024), (1024, 128, 65536)):
        yield case(n, D, Q)
