"""enqueue_: the ring write against MoCo's slice assignment with its host read of the pointer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work


def moco(queue: Tensor, keys: Tensor, pointer: Tensor) -> tuple[Tensor, ...]:
    start, n = int(pointer), keys.shape[0]
    queue[:, start : start + n] = keys.T
    pointer[0] = (start + n) % queue.shape[1]
    return queue, pointer


def index_copy(queue: Tensor, keys: Tensor, pointer: Tensor) -> tuple[Tensor, ...]:
    """The eager form that leaves the pointer where it is."""
    slots = (pointer + torch.arange(keys.shape[0], device=keys.device)) % queue.shape[1]
    queue.index_copy_(1, slots, keys.T)
    pointer.add_(keys.shape[0]).remainder_(queue.shape[1])
    return queue, pointer


def fused(queue: Tensor, keys: Tensor, pointer: Tensor) -> tuple[Tensor, ...]:
    skelops.enqueue_(queue, keys, pointer)
    return queue, pointer


def case(
    n: int, D: int, Q: int, dtype: torch.dtype = torch.float32, headline: bool = False, by_rows: bool = False
) -> Case:
    """A queue as MoCo stores it, (D, Q); or one that lies in memory row by row."""

    def inputs() -> tuple[Any, ...]:
        keys = normalize(torch.randn(n, D), dim=1).to(dtype)
        queue = torch.zeros(Q, D, dtype=dtype).t() if by_rows else torch.zeros(D, Q, dtype=dtype)
        return queue, keys, torch.zeros(1, dtype=torch.int64)

    return Case(
        op="enqueue_",
        name=f"n={n} D={D} Q={Q}{' by rows' if by_rows else ''}",
        dtype=dtype,
        inputs=inputs,
        skelops=fused,
        eager=moco,
        forward=Work(2.0 * dtype.itemsize * n * D),
        others={"index_copy_": index_copy},
        compiles=False,  # it reads the pointer on the host: a graph per value
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    if device == "cuda":
        for dtype in GPU_DTYPES:
            yield case(256, 128, 65536, dtype, headline=True)
            yield case(256, 128, 65536, dtype, by_rows=True)
            for n, D, Q in (
                (128, 128, 32768),
                (256, 256, 1 << 20),
                (4096, 128, 65536),
                (64, 64, 1024),
                (1, 128, 65536),
            ):
                yield case(n, D, Q, dtype)
        return
    yield case(128, 128, 32768, headline=True)
    for n, D, Q in ((1, 128, 32768), (64, 64, 1024), (1024, 128, 65536)):
        yield case(n, D, Q)
