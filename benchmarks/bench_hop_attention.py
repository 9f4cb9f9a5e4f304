"""hop_attention against Hyperformer's released form: permutes, einsums and a softmax over stored scores; and SDPA."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from skelops.methods.encoders.hyperformer import hypergraph
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work

HEADS, WIDTH = 9, 24


def _by_frame(x: Tensor) -> Tensor:
    """(B, H*d, T, V) -> (B, T, H, V, d)."""
    return x.unflatten(1, (HEADS, WIDTH)).permute(0, 3, 1, 4, 2)


def eager(
    qkv: Tensor, group_key: Tensor, hop_key: Tensor, group_bias: Tensor, static: Tensor, alpha: Tensor,
    distance: Tensor, groups: Tensor,
) -> Tensor:  # fmt: skip
    q, k, x, e = (_by_frame(m) for m in (*qkv.chunk(3, 1), group_key[..., groups]))
    score = q @ k.mT + torch.einsum("bthnc,hnmc->bthnm", q, hop_key[:, distance.mT])
    score = score + torch.einsum("bthnc,bthmc->bthnm", q, e)
    score = score + torch.einsum("hc,bthmc->bthm", group_bias, e)[..., None, :]
    attention = alpha * (score * WIDTH**-0.5).softmax(-1) + static.mT
    (B, C, T, _), V = group_key.shape, qkv.shape[3]
    return (attention @ x).transpose(3, 4).reshape(B, T, C, V).transpose(1, 2)


def sdpa(
    qkv: Tensor, group_key: Tensor, hop_key: Tensor, group_bias: Tensor, static: Tensor, alpha: Tensor,
    distance: Tensor, groups: Tensor,
) -> Tensor:  # fmt: skip
    """The keys of hops and groups as a mask that is added; the static part, a second product."""
    q, k, x, e = (_by_frame(m) for m in (*qkv.chunk(3, 1), group_key[..., groups]))
    mask = torch.einsum("bthnc,hnmc->bthnm", q, hop_key[:, distance.mT])
    mask = (mask + torch.einsum("hc,bthmc->bthm", group_bias, e)[..., None, :]) * WIDTH**-0.5
    out = alpha * scaled_dot_product_attention(
        q.flatten(0, 1), (k + e).flatten(0, 1), x.flatten(0, 1), mask.flatten(0, 1)
    )
    (B, C, T, _), V = group_key.shape, qkv.shape[3]
    return (out.unflatten(0, (B, T)) + static.mT @ x).transpose(3, 4).reshape(B, T, C, V).transpose(1, 2)


def case(B: int, T: int, V: int, layout: str, dtype: torch.dtype, headline: bool = False) -> Case:
    skeleton = "ntu" if V == 25 else "nw_ucla"
    distance, groups = hypergraph(skeleton)
    n_hops, G, C = int(distance.max()) + 1, int(groups.max()) + 1, HEADS * WIDTH
    memory_format = getattr(torch, layout)

    def inputs() -> tuple[Tensor, ...]:
        maps = [torch.randn(size).contiguous(memory_format=memory_format) for size in ((B, 3 * C, T, V), (B, C, T, G))]
        sizes = (HEADS, n_hops, WIDTH), (HEADS, WIDTH), (HEADS, V, V), (1,)
        floats = [x.to(dtype).requires_grad_() for x in (*maps, *(torch.randn(size) * 0.1 for size in sizes))]
        device = floats[0].device
        return *floats, distance.to(device), groups.to(device)

    size = torch.finfo(dtype).bits // 8
    rows, map_bytes = B * T * V, size * B * T * V * C
    product = 2.0 * rows * V * C
    by_hop = 2.0 * rows * n_hops * C
    return Case(
        op="hop_attention",
        name=f"B={B} T={T} V={V} {layout.removesuffix('_format')}",
        dtype=dtype,
        inputs=inputs,
        skelops=lambda *args: skelops.hop_attention(*args, heads=HEADS),
        eager=eager,
        others={"scaled_dot_product_attention": sdpa},
        forward=Work(4 * map_bytes, 2 * product + by_hop),
        # Backward computes the scores again.
        backward=Work(11 * map_bytes, 7 * product + 4 * by_hop),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    if device == "cuda":
        for dtype in GPU_DTYPES:
            yield case(128, 64, 25, "contiguous_format", dtype, headline=True)
            yield case(128, 64, 25, "channels_last", dtype, headline=True)
            yield case(128, 16, 25, "channels_last", dtype)
            yield case(128, 32, 25, "channels_last", dtype)
            yield case(32, 52, 20, "contiguous_format", dtype)
            yield case(32, 52, 20, "channels_last", dtype)
        return
    for dtype in (torch.float32, torch.bfloat16):
        yield case(16, 64, 25, "channels_last", dtype, headline=True)
        yield case(16, 64, 25, "contiguous_format", dtype)
        yield case(4, 64, 25, "channels_last", dtype)
        yield case(32, 16, 25, "channels_last", dtype)
        yield case(16, 52, 20, "channels_last", dtype)
        yield case(1, 16, 25, "channels_last", dtype)
