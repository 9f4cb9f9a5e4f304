"""aggregate against einsum, as the field writes it, and against broadcast matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work


def eager(x: Tensor, adjacency: Tensor, *, axes: str, sum_subsets: bool, axis: str) -> Tensor:
    """n is the target frame."""
    features, result = "bkctv" if x.dim() == 5 else "bctv", "bctw" if sum_subsets else "bkctw"
    if axis == "frames":
        axes, result = axes.replace("vw", "tn"), result.replace("tw", "nv")
    return torch.einsum(f"{features},{axes}->{result}", x, adjacency)


def products(x: Tensor, adjacency: Tensor, *, axes: str, sum_subsets: bool, axis: str) -> Tensor:
    """Axes that are missing are broadcast; a frame's own adjacency multiplies a row of one frame."""
    for position, letter in enumerate("bkc"):
        if letter not in axes:
            adjacency = adjacency.unsqueeze(position)
    features = x if x.dim() == 5 else x[:, None]
    if axis == "frames":
        y = adjacency.mT @ features
    elif "t" in axes:
        y = (features[..., None, :] @ adjacency)[..., 0, :]
    else:
        y = features @ adjacency
    return y.sum(1) if sum_subsets else y


def case(
    axes: str,
    sizes: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: str = "contiguous",
    sum_subsets: bool = False,
    axis: str = "joints",
    headline: bool = False,
) -> Case:
    """Subsets that are summed have features of their own, as after a projection."""
    B, K, C, T, V = sizes
    sources, other = (V, T) if axis == "joints" else (T, V)
    edges_shape = [{"b": B, "k": K, "c": C, "t": T, "v": sources, "w": sources}[letter] for letter in axes]

    def inputs() -> tuple[Tensor, ...]:
        x = torch.randn(B, K * C if sum_subsets else C, T, V)
        if memory_format == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        if sum_subsets:
            x = x.unflatten(1, (K, C))
        return tuple(value.to(dtype).requires_grad_() for value in (x, torch.rand(edges_shape) / sources))

    setting: dict[str, Any] = {"axes": axes, "sum_subsets": sum_subsets, "axis": axis}
    size = torch.finfo(dtype).bits // 8
    moved = B * C * (K + 1) * T * V  # subsets have an axis of their own on one side
    edges = int(torch.tensor(edges_shape).prod())
    flop = 2.0 * B * K * C * other * sources**2
    form = f"{axes} {'sum' if sum_subsets else 'each'}{'' if axis == 'joints' else ' frames'} {memory_format}"
    return Case(
        op="aggregate",
        name=f"{form} B={B} K={K} C={C} T={T} V={V}",
        dtype=dtype,
        inputs=inputs,
        skelops=partial(skelops.aggregate, **setting),
        eager=partial(eager, **setting),
        others={"broadcast matrix products": partial(products, **setting)},
        forward=Work(size * (moved + edges), flop),
        backward=Work(size * (3 * moved + 3 * edges), 3 * flop),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    B = 128 if device == "cuda" else 16
    for dtype in GPU_DTYPES if device == "cuda" else (torch.float32, torch.bfloat16):
        for memory_format in ("contiguous", "channels_last"):
            make = partial(case, dtype=dtype, memory_format=memory_format)
            yield make("kvw", (B, 3, 64, 64, 25), headline=memory_format == "channels_last")
            yield make("bkvw", (B, 3, 64, 64, 25), sum_subsets=True)
            yield make("bkcvw", (B, 3, 64, 64, 25), sum_subsets=True, headline=memory_format == "channels_last")
            yield make("bkvw", (B // 2, 3, 64, 50, 25), axis="frames")
        yield case("kvw", (B // 4, 13, 64, 32, 25), dtype)
        yield case("kvw", (B // 4, 6, 64, 32, 75), dtype)
        yield case("bkcvw", (B, 8, 8, 64, 25), dtype)
        yield case("bktvw", (B // 2, 3, 64, 32, 25), dtype, sum_subsets=True)
        yield case("bkctvw", (B // 4, 3, 16, 16, 25), dtype, sum_subsets=True)
