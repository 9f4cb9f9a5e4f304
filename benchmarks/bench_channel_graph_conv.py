"""channel_graph_conv against the released form of CTR-GCN, and its topology applied by batched matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work


def eager(
    x: Tensor, query: Tensor, key: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, adjacency: Tensor
) -> Tensor:
    """Subset after subset, contracting over the second index as released."""
    y: Tensor | None = None
    for k, features in enumerate(x.chunk(weight.shape[0], 1)):
        differences = torch.tanh(query[:, k, :, :, None] - key[:, k, :, None, :])
        topology = conv2d(differences, weight[k, :, :, None, None], bias[k]) * alpha + adjacency[k].mT
        part = torch.einsum("ncuv,nctv->nctu", topology, features)
        y = part if y is None else y + part
    assert y is not None
    return y


def eager_stats(*inputs: Tensor) -> tuple[Tensor, ...]:
    """With the sums that a BatchNorm after it takes."""
    y = eager(*inputs)
    return y, y.sum((0, 2, 3), dtype=torch.float64), y.float().square().sum((0, 2, 3), dtype=torch.float64)


def batched(
    x: Tensor, query: Tensor, key: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, adjacency: Tensor
) -> Tensor:
    """All subsets at once, by matrix products."""
    K, C, _ = weight.shape
    differences = torch.tanh(query[..., None, :] - key[..., :, None])
    learned = (weight @ differences.flatten(3) + bias[..., None]).unflatten(3, differences.shape[-2:])
    return (x.unflatten(1, (K, C)) @ (alpha * learned + adjacency[:, None])).sum(1)


def case(
    B: int,
    C: int,
    R: int,
    T: int,
    V: int,
    memory_format: str,
    dtype: torch.dtype,
    headline: bool = False,
    stats: bool = False,
) -> Case:
    K = 3

    def inputs() -> tuple[Tensor, ...]:
        x = torch.randn(B, K * C, T, V)
        if memory_format == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        others = (
            torch.randn(B, K, R, V),
            torch.randn(B, K, R, V),
            torch.randn(K, C, R) / R**0.5,
            torch.randn(K, C) / 10,
            torch.rand(1),
            torch.rand(K, V, V) / V,
        )
        return tuple(value.to(dtype).requires_grad_() for value in (x, *others))

    size = torch.finfo(dtype).bits // 8
    of_x, of_y = B * K * C * T * V, B * C * T * V
    edges = B * K * C * V * V
    return Case(
        op="channel_graph_conv",
        name=f"B={B} C={C} R={R} T={T} V={V} {memory_format}{' stats' if stats else ''}",
        dtype=dtype,
        inputs=inputs,
        skelops=partial(skelops.channel_graph_conv, stats=True) if stats else skelops.channel_graph_conv,
        eager=eager_stats if stats else eager,
        others={} if stats else {"batched matrix products": batched},
        forward=Work(size * (of_x + of_y), 2.0 * edges * (T + R)),
        backward=Work(size * (3 * of_x + (2 + stats) * of_y), 2.0 * edges * (3 * T + 4 * R)),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    if device == "cuda":
        for dtype in GPU_DTYPES:
            yield case(128, 64, 8, 64, 25, "contiguous", dtype, headline=True)
            yield case(128, 64, 8, 64, 25, "channels_last", dtype)
            yield case(128, 64, 8, 64, 25, "contiguous", dtype, stats=True)
            yield case(128, 64, 8, 64, 25, "channels_last", dtype, stats=True)
            yield case(128, 128, 16, 32, 25, "contiguous", dtype)
            yield case(128, 256, 32, 16, 25, "contiguous", dtype, headline=dtype == torch.bfloat16)
            yield case(64, 64, 8, 52, 20, "contiguous", dtype)
        return
    for dtype in (torch.float32, torch.bfloat16):
        yield case(16, 64, 8, 64, 25, "channels_last", dtype, headline=True)
        yield case(16, 64, 8, 64, 25, "channels_last", dtype, stats=True)
        yield case(16, 64, 8, 64, 25, "contiguous", dtype)
        yield case(16, 128, 16, 32, 25, "channels_last", dtype)
        yield case(16, 256, 32, 16, 25, "channels_last", dtype, headline=dtype == torch.float32)
        yield case(16, 256, 32, 16, 25, "contiguous", dtype)
        yield case(16, 64, 8, 52, 20, "channels_last", dtype)
        yield case(1, 64, 8, 64, 25, "channels_last", dtype)
