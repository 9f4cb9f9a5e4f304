"""queue_attention: log-sum-exp and mean of the queue, against softmax (whole, in chunks) and fused attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import skelops
from benchmarks.attention import attend
from benchmarks.case import GPU_DTYPES, Case, Work

SCALE = 5.0


def softmax(query: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    logits = SCALE * query @ queue.T
    return logits.logsumexp(1), logits.softmax(1) @ queue


def chunked(query: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """The same in chunks of the queue, whose means are merged by their weights."""
    parts = [softmax(query, rows) for rows in queue.split(16384)]
    lses = torch.stack([lse for lse, _ in parts])
    lse = lses.logsumexp(0)
    return lse, ((lses - lse).exp()[:, :, None] * torch.stack([mean for _, mean in parts])).sum(0)


def attention(query: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    return attend(query, queue, SCALE)


def fused(query: Tensor, queue: Tensor) -> tuple[Tensor, ...]:
    return tuple(skelops.queue_attention(query, queue, SCALE))


def case(N: int, D: int, Q: int, dtype: torch.dtype = torch.float32, headline: bool = False) -> Case:
    def inputs() -> tuple[Any, ...]:
        query, queue = (normalize(torch.randn(rows, D), dim=1).to(dtype) for rows in (N, Q))
        return query.requires_grad_(), queue

    moved = float(dtype.itemsize) * (D * Q + 2 * N * D)
    return Case(
        op="queue_attention",
        name=f"N={N} D={D} Q={Q}",
        dtype=dtype,
        inputs=inputs,
        skelops=fused,
        eager=softmax,
        forward=Work(moved, 4.0 * N * D * Q),
        backward=Work(2 * moved, 10.0 * N * D * Q),
        others={"chunked": chunked, "fused attention": attention},
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    if device == "cuda":
        for dtype in GPU_DTYPES:
            yield case(256, 128, 65536, dtype, headline=True)
            for N, D, Q in (
                (256, 256, 1 << 20),
                (1024, 128, 65536),
                (32, 128, 65536),
                (256, 64, 16384),
                (512, 256, 8192),
                (256, 512, 16384),
            ):
                yield case(N, D, Q, dtype)
        return
    yield case(128, 128, 32768, headline=True)
    for N, D, Q in ((1, 128, 32768), (16, 128, 8192), (128, 16, 8192), (128, 128, 64), (512, 256, 4096)):
        yield case(N, D, Q)
