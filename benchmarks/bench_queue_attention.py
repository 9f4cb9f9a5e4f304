"""queue_attention: log-sum-exp and mean of the queue, against softmax and against torch's fused attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

import skelops
from benchmarks.case import Case, Work

SCALE = 5.0


def softmax(query: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    logits = SCALE * query @ queue.T
    return logits.logsumexp(1), logits.softmax(1) @ queue


def attention(query: Tensor, queue: Tensor) -> Tensor:
    """The mean alone, keys and values being the queue."""
    return scaled_dot_product_attention(query[None, None], queue[None, None], queue[None, None], scale=SCALE)


def fused(query: Tensor, queue: Tensor) -> tuple[Tensor, ...]:
    return tuple(skelops.queue_attention(query, queue, SCALE))


def case(N: int, D: int, Q: int, headline: bool = False) -> Case:
    def inputs() -> tuple[Any, ...]:
        return normalize(torch.randn(N, D), dim=1).requires_grad_(), normalize(torch.randn(Q, D), dim=1)

    moved = 4.0 * (D * Q + 2 * N * D)
    return Case(
        op="queue_attention",
        name=f"N={N} D={D} Q={Q}",
        dtype=torch.float32,
        inputs=inputs,
        skelops=fused,
        eager=softmax,
        forward=Work(moved, 4.0 * N * D * Q),
        backward=Work(2 * moved, 10.0 * N * D * Q),
        others={"scaled_dot_product_attention": attention},
        headline=headline,
    )


def cases() -> Iterator[Case]:
    yield case(128, 128, 32768, headline=True)
    for N, D, Q in ((1, 128, 32768), (16, 128, 8192), (128, 16, 8192), (128, 128, 64), (512, 256, 4096)):
        yield case(N, D, Q)
