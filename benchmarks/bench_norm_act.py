"""norm_act against what ends a layer in eager PyTorch: normalisation, dropout, residual and ReLU, one after the other.

"affine" rows apply a given scale and shift; "batch_norm" rows train a BatchNorm on the map, and ours reads it once more
for the sums, which the op that made the map would give for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work

RATE = 0.5


def eager_affine(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, rate: float) -> Tensor:
    z = (x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
    z = F.dropout(z, rate) if rate else z
    return F.relu(z if residual is None else z + residual)


def eager_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, rate: float) -> Tensor:
    z = F.batch_norm(x, None, None, weight, bias, training=True)
    z = F.dropout(z, rate) if rate else z
    return F.relu(z if residual is None else z + residual)


def affine(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, rate: float) -> Tensor:
    seed = torch.randint(2**63 - 1, (1,), device=x.device) if rate else None
    return skelops.norm_act(x, scale, shift, residual, dropout=rate, seed=seed)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, rate: float) -> Tensor:
    B, _, T, V = x.shape
    return affine(x, *skelops.batch_norm_affine(*skelops.channel_sums(x), B * T * V, weight, bias), residual, rate)


def case(
    B: int,
    C: int,
    T: int,
    V: int,
    form: str,
    dtype: torch.dtype,
    layout: str = "channels_last",
    residual: bool = True,
    rate: float = 0.0,
    headline: bool = False,
) -> Case:
    def inputs() -> tuple[Any, ...]:
        # Residuals far from zero: rounding then decides nowhere about a gradient. With dropout, whose masks differ from
        # eager's, they are so far below that both give zeros.
        far = torch.full((B, C, T, V), -100.0) if rate else 8 * torch.randn(B, C, T, V).sign()
        maps = [
            part.to(dtype).contiguous(memory_format=getattr(torch, layout)).requires_grad_()
            for part in (torch.randn(B, C, T, V), far)
        ]
        scale, shift = (torch.rand(C).requires_grad_() for _ in range(2))
        return maps[0], scale, shift, maps[1] if residual else None, rate

    size = B * C * T * V * torch.finfo(dtype).bits // 8
    sums = form == "batch_norm"
    read = 1 + residual + sums
    words = [form, "residual"] * residual or [form]
    return Case(
        op="norm_act",
        name=f"B={B} C={C} T={T} V={V} {' '.join(words)}{' dropout' if rate else ''} {layout.removesuffix('_format')}",
        dtype=dtype,
        inputs=inputs,
        skelops=affine if form == "affine" else batch_norm,
        eager=eager_affine if form == "affine" else eager_batch_norm,
        forward=Work(size * (read + 1), 4 * B * C * T * V),
        # Of the gradient, x and y one read each, for the sums x once more; one write per map that has a gradient.
        backward=Work(size * (read + 1 + 3 + sums + 1 + residual), 12 * B * C * T * V),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    if device == "cuda":
        for dtype in GPU_DTYPES:
            for layout in ("contiguous_format", "channels_last"):
                for form in ("affine", "batch_norm"):
                    yield case(256, 64, 50, 25, form, dtype, layout, headline=form == "batch_norm")
                    yield case(256, 64, 50, 25, form, dtype, layout, rate=RATE)
                    yield case(256, 256, 16, 25, form, dtype, layout)
                    yield case(256, 16, 64, 25, form, dtype, layout, residual=form == "batch_norm")
                    yield case(64, 216, 13, 25, form, dtype, layout)
        return
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("channels_last", "contiguous_format"):
            for form in ("affine", "batch_norm"):
                headline = dtype == torch.float32 and layout == "channels_last" and form == "batch_norm"
                yield case(64, 64, 50, 25, form, dtype, layout, headline=headline)
                yield case(64, 64, 50, 25, form, dtype, layout, rate=RATE, headline=headline)
                yield case(64, 256, 13, 25, form, dtype, layout)
                yield case(64, 16, 64, 25, form, dtype, layout, residual=form == "batch_norm")
                yield case(64, 14, 25, 25, form, dtype, layout)
                yield case(16, 216, 13, 25, form, dtype, layout)
                yield case(1, 64, 50, 25, form, dtype, layout)
