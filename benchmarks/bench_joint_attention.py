"""joint_attention against the released forms of DSTA-Net (einsum, tanh) and 2s-AGCN (matmul per subset, softmax)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work


def dsta(source: Tensor, target: Tensor, static: Tensor, alpha: Tensor) -> Tensor:
    B, C, T, V = source.shape
    S = len(alpha)
    q, k = (x.reshape(B, S, C // S, T, V) for x in (source, target))
    score = torch.einsum("nsctu,nsctv->nsuv", q, k) / (C // S * T)
    return torch.tanh(score) * alpha[None, :, None, None] + static


def siia(source: Tensor, target: Tensor, static: Tensor, alpha: Tensor) -> Tensor:
    B, C, T, V = source.shape
    S = len(alpha)
    q, k = (x.reshape(B, S, C // S, T, V) for x in (source, target))
    score = torch.einsum("nsctv,nscqv->nstq", q, k) / (C // S * V)
    return torch.tanh(score) * alpha[None, :, None, None] + static


def agcn(source: Tensor, target: Tensor, static: Tensor) -> Tensor:
    B, C, T, V = source.shape
    S = len(static)
    parts = []
    for s, (q, k) in enumerate(zip(source.chunk(S, 1), target.chunk(S, 1), strict=True)):
        rows = q.permute(0, 3, 1, 2).reshape(B, V, C // S * T)
        parts.append(torch.softmax(rows @ k.reshape(B, C // S * T, V) / (C // S * T), -2) + static[s])
    return torch.stack(parts, 1)


FORMS: dict[str, Callable[..., Tensor]] = {"DSTA": dsta, "SIIA frames": siia, "2s-AGCN": agcn}


def case(
    form: str, B: int, width: int, T: int, V: int, layout: str, dtype: torch.dtype, headline: bool = False
) -> Case:
    S = 3 if form == "2s-AGCN" else 4
    axis: Literal["joints", "frames"] = "frames" if form == "SIIA frames" else "joints"
    activation: Literal["tanh", "softmax"] = "softmax" if form == "2s-AGCN" else "tanh"
    P = V if axis == "joints" else T
    memory_format = getattr(torch, layout)

    def inputs() -> tuple[Tensor, ...]:
        maps = [torch.randn(B, S * width, T, V).contiguous(memory_format=memory_format) for _ in range(2)]
        parameters = [torch.randn(S, P, P) / P] + ([] if form == "2s-AGCN" else [torch.ones(S)])
        return tuple(x.to(dtype).requires_grad_() for x in (*maps, *parameters))

    size = torch.finfo(dtype).bits // 8
    maps, pairs = 2 * B * S * width * T * V, B * S * P * P
    product = maps * P
    return Case(
        op="joint_attention",
        name=f"{form} B={B} S={S} C'={width} T={T} V={V} {layout.removesuffix('_format')}",
        dtype=dtype,
        inputs=inputs,
        skelops=lambda *args: skelops.joint_attention(*args, heads=S, axis=axis, activation=activation),
        eager=FORMS[form],
        forward=Work(size * (maps + pairs), product),
        backward=Work(size * (3 * maps + 4 * pairs), 3 * product),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    dtypes, more = (GPU_DTYPES, 4) if device == "cuda" else ((torch.float32, torch.bfloat16), 1)
    for dtype in dtypes:
        for layout in ("contiguous_format", "channels_last"):
            headline = layout == "channels_last"
            yield case("DSTA", 64 * more, 16, 50, 25, layout, dtype, headline)
            yield case("DSTA", 64 * more, 64, 13, 25, layout, dtype)
            yield case("2s-AGCN", 16 * more, 16, 300, 25, layout, dtype, headline)
            yield case("2s-AGCN", 16 * more, 64, 75, 25, layout, dtype)
            yield case("SIIA frames", 32 * more, 64, 13, 25, layout, dtype)
        yield case("SIIA frames", 4 * more, 16, 64, 25, "channels_last", dtype)
        yield case("SIIA frames", 4 * more, 16, 75, 25, "channels_last", dtype)
        yield case("DSTA", 16 * more, 32, 25, 20, "channels_last", dtype)
        yield case("DSTA", 1, 16, 50, 25, "channels_last", dtype)
