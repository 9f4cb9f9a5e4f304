"""temporal_conv against conv2d, alone and between two normalisations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work

#: B, C, O, T, V, k, stride, dilation, groups.
Shape = tuple[int, int, int, int, int, int, int, int, int]


def eager(x: Tensor, weight: Tensor, bias: Tensor, stride: int, dilation: int, groups: int) -> Tensor:
    padding = (weight.shape[2] // 2 * dilation, 0)
    return conv2d(x, weight[..., None], bias, (stride, 1), padding, (dilation, 1), groups)


def eager_normalised(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, stride: int, dilation: int, groups: int
) -> tuple[Tensor, ...]:
    activated = torch.relu(scale[:, None, None] * x + shift[:, None, None]).to(x.dtype)
    y = eager(activated, weight, bias, stride, dilation, groups)
    variance, mean = torch.var_mean(y.float(), (0, 2, 3), correction=0)
    return y, mean, variance


def normalised(*args: Tensor, stride: int, dilation: int, groups: int) -> tuple[Tensor, ...]:
    y, total, squares = skelops.temporal_conv(*args, stride=stride, dilation=dilation, groups=groups, stats=True)
    count = y.numel() // y.shape[1]
    mean = total / count
    return y, mean.float(), (squares / count - mean.square()).float()


def case(
    shape: Shape, kind: str, dtype: torch.dtype, memory_format: torch.memory_format, headline: bool = False
) -> Case:
    B, C, O, T, V, k, stride, dilation, groups = shape
    form = {"stride": stride, "dilation": dilation, "groups": groups}

    def inputs() -> tuple[Tensor, ...]:
        x = torch.randn(B, C, T, V).to(dtype).contiguous(memory_format=memory_format)
        weight = (torch.randn(O, C // groups, k) / (C // groups * k) ** 0.5).to(dtype)
        values = [x, weight, torch.randn(O).to(dtype)]
        if kind == "normalised":
            values += [torch.rand(C) + 0.5, torch.randn(C)]
        return tuple(value.requires_grad_() for value in values)

    ours: Callable[..., Any] = normalised if kind == "normalised" else skelops.temporal_conv
    theirs: Callable[..., Any] = eager_normalised if kind == "normalised" else eager
    size = torch.finfo(dtype).bits // 8
    read, written = B * C * T * V, B * O * -(-T // stride) * V
    flop = 2.0 * written * C // groups * k
    layout = "contiguous" if memory_format == torch.contiguous_format else "channels_last"
    details = "".join(f" {name}={value}" for name, value in form.items() if value > 1)
    return Case(
        op="temporal_conv",
        name=f"B={B} C={C} O={O} T={T} V={V} k={k}{details} {kind} {layout}",
        dtype=dtype,
        inputs=inputs,
        skelops=lambda *args: ours(*args, **form),
        eager=lambda *args: theirs(*args, **form),
        forward=Work(size * (read + written), flop),
        backward=Work(size * (3 * read + (3 if kind == "normalised" else 2) * written), 3 * flop),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    contiguous, channels_last = torch.contiguous_format, torch.channels_last
    if device == "cuda":
        for dtype in GPU_DTYPES:
            for kind in ("plain", "normalised"):
                for memory_format in (contiguous, channels_last):
                    yield case((256, 64, 64, 64, 25, 9, 1, 1, 1), kind, dtype, memory_format, kind == "normalised")
                    yield case((256, 128, 128, 32, 25, 9, 2, 1, 1), kind, dtype, memory_format)
            yield case((256, 256, 256, 16, 25, 9, 1, 1, 1), "normalised", dtype, channels_last)
            yield case((256, 16, 16, 64, 25, 9, 1, 1, 1), "normalised", dtype, channels_last)
            yield case((256, 16, 16, 64, 25, 5, 2, 2, 1), "plain", dtype, contiguous)
            yield case((256, 3, 64, 64, 25, 1, 1, 1, 1), "plain", dtype, contiguous)
            yield case((128, 216, 216, 64, 25, 1, 1, 1, 6), "plain", dtype, channels_last)
        return
    for dtype in (torch.float32, torch.bfloat16):
        for memory_format in (contiguous, channels_last):
            first = dtype == torch.float32
            yield case((16, 64, 64, 50, 25, 9, 1, 1, 1), "normalised", dtype, memory_format, headline=first)
            yield case((16, 64, 64, 50, 25, 9, 1, 1, 1), "plain", dtype, memory_format)
            yield case((16, 64, 128, 50, 25, 9, 2, 1, 1), "normalised", dtype, memory_format)
            yield case((16, 256, 256, 13, 25, 9, 1, 1, 1), "normalised", dtype, memory_format, headline=first)
            yield case((16, 16, 16, 64, 25, 9, 1, 1, 1), "normalised", dtype, memory_format, headline=first)
            yield case((16, 64, 64, 50, 25, 1, 1, 1, 1), "normalised", dtype, memory_format, headline=first)
            yield case((16, 64, 64, 50, 25, 1, 1, 1, 1), "plain", dtype, memory_format)
            yield case((16, 16, 16, 64, 25, 5, 1, 2, 1), "plain", dtype, memory_format)
            yield case((16, 3, 64, 50, 25, 1, 1, 1, 1), "plain", dtype, memory_format)
            yield case((16, 14, 27, 50, 20, 3, 1, 1, 1), "plain", dtype, memory_format)
            yield case((8, 216, 216, 64, 25, 1, 1, 1, 6), "plain", dtype, memory_format)
