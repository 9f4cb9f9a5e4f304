"""multi_scale_conv against a list of branches that are concatenated, as released encoders write it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work

DILATIONS = (1, 2)
FRAMES = 5  # that a dilated convolution spans, before dilation


def eager(
    narrow: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    plain_weight: Tensor,
    plain_bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    stride: int,
) -> Tensor:
    activated = torch.relu(scale[:, None, None] * narrow + shift[:, None, None]).to(x.dtype)
    *parts, pooled = activated.chunk(len(DILATIONS) + 1, dim=1)
    branches = [
        conv2d(part, w[..., None], b, (stride, 1), (FRAMES // 2 * dilation, 0), (dilation, 1))
        for part, w, b, dilation in zip(parts, weight, bias, DILATIONS, strict=True)
    ]
    branches.append(max_pool2d(pooled, (3, 1), (stride, 1), (1, 0)))
    branches.append(conv2d(x, plain_weight[..., None, None], plain_bias, (stride, 1)))
    return torch.cat(branches, dim=1)


def case(B: int, C: int, T: int, V: int, stride: int, layout: str, dtype: torch.dtype, headline: bool = False) -> Case:
    """As in CTR-GCN: C channels in and out, a quarter of them to a branch."""
    G, W = len(DILATIONS), C // 4

    def inputs() -> tuple[Tensor, ...]:
        maps = [torch.randn(B, channels, T, V) for channels in ((G + 1) * W, C)]
        parameters = (
            torch.randn(G, W, W, FRAMES) / (W * FRAMES) ** 0.5,
            torch.randn(G, W),
            torch.randn(W, C) / C**0.5,
            torch.randn(W),
        )
        normalisation = torch.rand((G + 1) * W) + 0.5, torch.randn((G + 1) * W)
        low = (part.to(dtype) for part in parameters)
        maps = [part.to(dtype).contiguous(memory_format=getattr(torch, layout)) for part in maps]
        return tuple(part.requires_grad_() for part in (*maps, *low, *normalisation))

    size, read, written = torch.finfo(dtype).bits // 8, B * ((G + 1) * W + C) * T * V, B * C * -(-T // stride) * V
    flop = 2 * B * -(-T // stride) * V * W * (G * W * FRAMES + C)
    return Case(
        op="multi_scale_conv",
        name=f"B={B} C={C} T={T} V={V} stride={stride} {layout.removesuffix('_format')}",
        dtype=dtype,
        inputs=inputs,
        skelops=partial(skelops.multi_scale_conv, dilations=DILATIONS, stride=stride),
        eager=partial(eager, stride=stride),
        forward=Work(size * (read + written), flop),
        backward=Work(size * (3 * read + 2 * written), 3 * flop),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    batch = 16 if device == "cpu" else 128
    for dtype in GPU_DTYPES if device == "cuda" else (torch.float32, torch.bfloat16):
        for layout in ("channels_last", "contiguous_format"):
            yield case(batch, 64, 64, 25, 1, layout, dtype, headline=dtype == torch.float32)
            yield case(batch, 128, 64, 25, 2, layout, dtype)
            yield case(batch, 256, 16, 25, 1, layout, dtype)
