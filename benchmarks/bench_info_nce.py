"""info_nce: the recipe of MoCo training loops, SkeleMixCLR's seven query sets, batch and queue sweeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint

import skelops
from benchmarks.attention import attend
from benchmarks.case import GPU_DTYPES, Case, Work

TEMPERATURE = 0.07


def moco(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """The loss as MoCo writes it, once per group of queries."""
    losses = []
    for group in query if query.dim() == 3 else query[None]:
        q, k = normalize(group, dim=1), normalize(key, dim=1)
        positive = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", q, queue.clone().detach())
        logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
        losses.append(cross_entropy(logits, torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)))
    return torch.stack(losses).mean()


def log_sum_exp(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """The better-written eager form: no clone, no concatenation."""
    q, k = normalize(query, dim=-1), normalize(key, dim=-1)
    positive = (q * k).sum(-1) / TEMPERATURE
    return (torch.logaddexp((q @ queue / TEMPERATURE).logsumexp(-1), positive) - positive).mean()


def chunked(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """The eager form without logits of the whole queue: chunks of it, computed anew in the backward pass."""
    q, k = normalize(query, dim=-1), normalize(key, dim=-1)
    positive = (q * k).sum(-1) / TEMPERATURE

    def part(q: Tensor, columns: Tensor) -> Tensor:
        return (q @ columns / TEMPERATURE).logsumexp(-1)

    parts = [
        checkpoint(part, q, columns, use_reentrant=False, preserve_rng_state=False) for columns in queue.split(16384, 1)
    ]
    return (torch.logaddexp(torch.stack(parts).logsumexp(0), positive) - positive).mean()


def attention(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """By PyTorch's fused attention, which takes the queue by rows."""
    q, k = normalize(query, dim=-1), normalize(key, dim=-1)
    positive = (q * k).sum(-1) / TEMPERATURE
    lse, _ = attend(q.flatten(0, -2), queue.T.contiguous(), 1 / TEMPERATURE)
    return (torch.logaddexp(lse.view_as(positive), positive) - positive).mean()


def fused(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    return skelops.info_nce(query, key, queue, TEMPERATURE).loss


def case(N: int, D: int, Q: int, groups: int = 0, dtype: torch.dtype = torch.float32, headline: bool = False) -> Case:
    def inputs() -> tuple[Any, ...]:
        shape = (groups, N, D) if groups else (N, D)
        queue = normalize(torch.randn(D, Q), dim=0).to(dtype)
        return torch.randn(shape).to(dtype).requires_grad_(), torch.randn(N, D).to(dtype), queue

    rows, size = N * max(groups, 1), dtype.itemsize
    moved = size * (D * Q + 2 * rows * D)
    return Case(
        op="info_nce",
        name=f"{f'G={groups} ' if groups else ''}N={N} D={D} Q={Q}",
        dtype=dtype,
        inputs=inputs,
        skelops=fused,
        eager=moco,
        forward=Work(moved, 2.0 * rows * D * Q),
        backward=Work(moved + size * rows * D, 4.0 * rows * D * Q),
        others={"log_sum_exp": log_sum_exp, "chunked": chunked, "fused attention": attention},
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    if device == "cuda":
        for dtype in GPU_DTYPES:
            yield case(256, 128, 65536, dtype=dtype, headline=True)
            yield case(256, 256, 1 << 20, dtype=dtype, headline=True)
            yield case(128, 128, 32768, groups=7, dtype=dtype, headline=True)
            for N, D, Q in (
                (128, 128, 32768),
                (32, 128, 65536),
                (1024, 128, 65536),
                (256, 64, 16384),
                (512, 256, 8192),
                (256, 512, 16384),
            ):
                yield case(N, D, Q, dtype=dtype)
        return
    yield case(128, 128, 32768, headline=True)
    yield case(128, 128, 32768, groups=7, headline=True)
    yield case(128, 128, 32768, dtype=torch.bfloat16)
    for N in (1, 8, 32, 256):
        yield case(N, 128, 32768)
    for Q in (64, 1024, 8192, 65536):
        yield case(128, 128, Q)
    for D in (16, 64, 256, 512):
        yield case(128, D, 8192)
    yield case(1, 16, 64)
