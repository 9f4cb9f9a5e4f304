"""graph_conv against conv2d + einsum, the released form of ST-GCN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work
from skelops.graphs import adjacency


def eager(x: Tensor, weight: Tensor, edges: Tensor) -> Tensor:
    K, O, C = weight.shape
    projected = conv2d(x, weight.reshape(K * O, C, 1, 1)).unflatten(1, (K, O))
    return torch.einsum("bkotv,kvw->botw" if edges.dim() == 3 else "bkotv,bkvw->botw", projected, edges)


def eager_stats(x: Tensor, weight: Tensor, edges: Tensor) -> tuple[Tensor, ...]:
    """With the sums that a BatchNorm after it takes."""
    y = eager(x, weight, edges)
    return y, y.sum((0, 2, 3), dtype=torch.float64), y.float().square().sum((0, 2, 3), dtype=torch.float64)


def per_subset(x: Tensor, weight: Tensor, edges: Tensor) -> Tensor:
    """Aggregation by matmul, then a convolution per subset: the released form of 2s-AGCN and CTR-GCN's baseline."""
    B, C, T, V = x.shape
    y: Tensor | None = None
    for k in range(weight.shape[0]):
        z = (x.reshape(B, C * T, V) @ edges[..., k, :, :]).view(B, C, T, V)
        part = conv2d(z, weight[k, :, :, None, None])
        y = part if y is None else y + part
    assert y is not None
    return y


def case(
    B: int, C: int, O: int, T: int, V: int, kind: str, dtype: torch.dtype, headline: bool = False, stats: bool = False
) -> Case:
    K = 3

    def inputs() -> tuple[Tensor, ...]:
        x, weight = torch.randn(B, C, T, V), torch.randn(K, O, C) / C**0.5
        if kind == "per-sample":
            edges = torch.rand(B, K, V, V) / V
        elif kind == "dense" or V not in (20, 25):
            edges = torch.rand(K, V, V) / V
        else:
            edges = adjacency("ntu" if V == 25 else "nw_ucla")
        values = [value.to(dtype) for value in (x, weight, edges)]
        if kind == "channels_last":
            values[0] = values[0].contiguous(memory_format=torch.channels_last)
        return tuple(value.requires_grad_() for value in values)

    size = torch.finfo(dtype).bits // 8
    rows, maps, topology = B * T * V, B * T * V * (C + O), (B if kind == "per-sample" else 1) * K * V * V
    product = 2.0 * rows * K * C * O
    # The aggregation counts only where the adjacency is dense: the zeros of a skeleton graph need no work.
    aggregation = 2.0 * rows * K * V * C if kind in ("dense", "per-sample") else 0.0
    gram = 2.0 * rows * K * V * C  # the gradient of the adjacency is dense in any case
    return Case(
        op="graph_conv",
        name=f"B={B} C={C} O={O} T={T} V={V} {kind}{' stats' if stats else ''}",
        dtype=dtype,
        inputs=inputs,
        skelops=partial(skelops.graph_conv, stats=True) if stats else skelops.graph_conv,
        eager=eager_stats if stats else eager,
        others={} if stats else {"aggregate, then conv2d per subset": per_subset},
        forward=Work(size * (maps + topology), product + aggregation),
        backward=Work(size * (3 * maps + stats * rows * O + 2 * topology), 3 * product + 3 * aggregation + gram),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    make: Callable[..., Any] = case
    if device == "cuda":
        for dtype in GPU_DTYPES:
            yield make(256, 64, 64, 64, 25, "skeleton", dtype, headline=True)
            yield make(256, 64, 64, 64, 25, "dense", dtype)
            yield make(256, 64, 64, 64, 25, "channels_last", dtype, headline=dtype == torch.bfloat16)
            yield make(256, 64, 64, 64, 25, "per-sample", dtype, headline=dtype == torch.bfloat16)
            yield make(256, 64, 64, 64, 25, "skeleton", dtype, stats=True)
            yield make(256, 64, 64, 64, 25, "channels_last", dtype, stats=True)
            yield make(256, 128, 128, 32, 25, "skeleton", dtype, headline=dtype == torch.bfloat16)
            yield make(256, 256, 256, 16, 25, "skeleton", dtype, headline=dtype == torch.bfloat16)
            yield make(256, 3, 64, 64, 25, "skeleton", dtype)
            yield make(256, 16, 16, 64, 25, "skeleton", dtype)
            yield make(128, 64, 64, 300, 25, "skeleton", dtype)
            yield make(32, 128, 128, 25, 20, "skeleton", dtype)
            yield make(64, 64, 64, 32, 50, "dense", dtype)
            yield make(64, 64, 64, 32, 50, "dense", dtype, stats=True)
        return
    for dtype in (torch.float32, torch.bfloat16):
        yield make(64, 64, 64, 50, 25, "skeleton", dtype, headline=True)
        yield make(64, 64, 64, 50, 25, "dense", dtype, headline=dtype == torch.float32)
        yield make(64, 64, 64, 50, 25, "channels_last", dtype)
        yield make(64, 64, 64, 50, 25, "per-sample", dtype)
        yield make(64, 64, 64, 50, 25, "channels_last", dtype, stats=True)
        yield make(256, 16, 16, 64, 25, "skeleton", dtype)
        yield make(256, 3, 16, 64, 25, "skeleton", dtype)
        yield make(64, 3, 64, 300, 25, "skeleton", dtype)
        yield make(32, 128, 128, 25, 20, "skeleton", dtype)
        yield make(32, 64, 256, 13, 25, "skeleton", dtype)
        yield make(16, 256, 256, 16, 18, "dense", dtype)
        yield make(1, 3, 16, 1, 17, "dense", dtype)
        yield make(1, 16, 16, 50, 25, "skeleton", dtype)
        yield make(1, 64, 64, 300, 25, "skeleton", dtype)
        yield make(8, 256, 256, 1, 25, "skeleton", dtype)
