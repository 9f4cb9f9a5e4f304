"""joint_attention in Triton: a program sums the scores of a sample and head, and makes an adjacency of them.

P positions attend (joints, or frames), and the K terms of a score are the channels of a head at all R others (frames,
or joints). Blocks: BP positions, BW targets, BQ positions that a gradient sums over, BK terms. Gradients shared by the
samples are summed by share, then over the shares.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._layout import kernel_map, pitch
from skelops._triton import Tile, dot_precision, launch, splits, tile
from skelops._triton_math import tanh


@triton.jit
def _terms(k, T, V, D, ROWS: tl.constexpr, FRAMES: tl.constexpr):
    """Channel and other axis of terms, in the order of memory."""
    if ROWS:
        return k % D, k // D
    R = V if FRAMES else T
    return k // R, k % R


@triton.jit
def _where(b, h, p, c, r, pitch, T, V, D, ROWS: tl.constexpr, FRAMES: tl.constexpr):
    """Offsets (positions, terms) in a map; 32 bits are enough within a sample."""
    if FRAMES:
        t, v = p[:, None], r[None, :]
    else:
        t, v = r[None, :], p[:, None]
    if ROWS:
        return b.to(tl.int64) * T * V * pitch + h * D + ((t * V + v) * pitch + c[None, :])
    return b.to(tl.int64) * pitch + (h * D).to(tl.int64) * T * V + ((c[None, :] * T + t) * V + v)


@triton.jit
def _scores(
    source, target, static, alpha, attention, active, source_pitch, target_pitch, T, V, D, H, scale,
    BP: tl.constexpr, BW: tl.constexpr, BK: tl.constexpr, SOURCE_ROWS: tl.constexpr, TARGET_ROWS: tl.constexpr,
    FRAMES: tl.constexpr, SOFTMAX: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A of all sources and BW targets of a sample and head; and the activation alone, where A is more."""
    b, h = tl.program_id(0) // H, tl.program_id(0) % H
    v, w = tl.arange(0, BP), tl.program_id(1) * BW + tl.arange(0, BW)
    P, K = T if FRAMES else V, D * (V if FRAMES else T)
    score = tl.zeros((BP, BW), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        c, r = _terms(k, T, V, D, SOURCE_ROWS, FRAMES)
        of_source = source + _where(b, h, v, c, r, source_pitch, T, V, D, SOURCE_ROWS, FRAMES)
        of_target = target + _where(b, h, w, c, r, target_pitch, T, V, D, TARGET_ROWS, FRAMES)
        x = tl.load(of_source, mask=(v < P)[:, None] & (k < K)[None, :], other=0.0)
        y = tl.load(of_target, mask=(w < P)[:, None] & (k < K)[None, :], other=0.0)
        score = tl.dot(x, tl.trans(y), score, input_precision=PRECISION)
    score *= scale
    if SOFTMAX:
        score = tl.where((v < P)[:, None], score, float("-inf"))
        powers = tl.exp(score - tl.max(score, 0)[None, :])
        result = powers / tl.sum(powers, 0)[None, :]
    else:
        result = tanh(score)
    pairs = v[:, None] * P + w[None, :]
    inside = (v < P)[:, None] & (w < P)[None, :]
    of_head = tl.program_id(0).to(tl.int64) * P * P
    if active is not None:
        tl.store(active + of_head + pairs, result, mask=inside)
    if alpha is not None:
        result *= tl.load(alpha + h).to(tl.float32)
    if static is not None:
        result += tl.load(static + h * P * P + pairs, mask=inside, other=0.0).to(tl.float32)
    tl.store(attention + of_head + pairs, result, mask=inside)


@triton.jit
def _of_scores(
    grad, active, alpha, of_score, of_static, of_alpha, B, P, scale,
    BP: tl.constexpr, BW: tl.constexpr, SOFTMAX: tl.constexpr,
):  # fmt: skip
    """Gradients of the scores of a head and BW targets, of static and of alpha, over one share of the samples."""
    h, share, block, H = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(0)
    v, w = tl.arange(0, BP), block * BW + tl.arange(0, BW)
    pairs = v[:, None] * P + w[None, :]
    inside = (v < P)[:, None] & (w < P)[None, :]
    factor = 1.0
    if alpha is not None:
        factor = tl.load(alpha + h).to(tl.float32)
    sum_static = tl.zeros((BP, BW), tl.float32)
    sum_alpha = tl.zeros((BW,), tl.float32)
    for b in range(share, B, tl.num_programs(1)):
        here = (b * H + h).to(tl.int64) * P * P + pairs
        g = tl.load(grad + here, mask=inside, other=0.0).to(tl.float32)
        a = tl.load(active + here, mask=inside, other=0.0).to(tl.float32)
        total = tl.sum(g * a, 0)
        if of_score is not None:
            slope = a * (g - total[None, :]) if SOFTMAX else g * (1.0 - a * a)
            tl.store(of_score + here, (scale * factor) * slope, mask=inside)
        sum_static += g
        sum_alpha += total
    part = (share * H + h).to(tl.int64)
    if of_static is not None:
        tl.store(of_static + part * P * P + pairs, sum_static, mask=inside)
    if of_alpha is not None:
        tl.store(of_alpha + part * tl.num_programs(2) + block, tl.sum(sum_alpha, 0))


@triton.jit
def _of_map(
    x, of_score, out, x_pitch, out_pitch, T, V, D, H,
    BP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, OUT_ROWS: tl.constexpr,
    FRAMES: tl.constexpr, BY_TARGET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the sources, from the targets x; or of the targets, from the sources x."""
    b, h = tl.program_id(0) // H, tl.program_id(0) % H
    k, p = tl.program_id(1) * BK + tl.arange(0, BK), tl.program_id(2) * BP + tl.arange(0, BP)
    P, K = T if FRAMES else V, D * (V if FRAMES else T)
    c, r = _terms(k, T, V, D, OUT_ROWS, FRAMES)
    of_score += tl.program_id(0).to(tl.int64) * P * P
    total = tl.zeros((BP, BK), tl.float32)
    for start in range(0, P, BQ):
        q = start + tl.arange(0, BQ)
        pairs = q[None, :] * P + p[:, None] if BY_TARGET else p[:, None] * P + q[None, :]
        slope = tl.load(of_score + pairs, mask=(p < P)[:, None] & (q < P)[None, :], other=0.0)
        values = x + _where(b, h, q, c, r, x_pitch, T, V, D, ROWS, FRAMES)
        values = tl.load(values, mask=(q < P)[:, None] & (k < K)[None, :], other=0.0)
        total = tl.dot(slope, values, total, input_precision=PRECISION)
    out += _where(b, h, p, c, r, out_pitch, T, V, D, OUT_ROWS, FRAMES)
    tl.store(out, total, mask=(p < P)[:, None] & (k < K)[None, :])


def _block(P: int) -> int:
    return max(16, triton.next_power_of_2(P))


def _case(x: Tensor, P: int) -> str:
    return f"{'float32' if x.dtype == torch.float32 else '16-bit'} {'joints' if _block(P) <= 32 else 'frames'}"


def _setting(kernel: str, x: Tensor, P: int) -> Tile:
    """All sources, as a softmax needs them, and as many targets as the registers hold beside them."""
    BP, chosen = _block(P), tile(kernel, x.device, _case(x, P))
    blocks = {"BP": BP, "BW": min(BP, max(16, 4096 // BP))}
    if "BK" in chosen:
        # What is loaded at once fits the shared memory up to 1024 positions.
        blocks["BK"] = min(chosen["BK"], max(16, 16384 // BP))
    return {**chosen, **blocks}


def joint_attention(
    source: Tensor, target: Tensor, static: Tensor | None, alpha: Tensor | None, heads: int, frames: bool,
    softmax: bool, scale: float, outputs: list[Tensor],
) -> None:  # fmt: skip
    attention, active = outputs
    (source, rows), (target, target_rows) = (kernel_map(x, slices=True) for x in (source, target))
    (B, C, T, V), P = source.shape, attention.shape[3]
    setting = _setting("joint_attention_scores", source, P)
    static, alpha = (None if x is None else x.contiguous() for x in (static, alpha))
    launch(
        _scores, (B * heads, triton.cdiv(P, setting["BW"])), source.device, source, target, static, alpha, attention,
        None if static is None and alpha is None else active, pitch(source, rows), pitch(target, target_rows), T, V,
        C // heads, heads, scale, SOURCE_ROWS=rows, TARGET_ROWS=target_rows, FRAMES=frames,
        SOFTMAX=softmax, PRECISION=dot_precision(source.dtype), **setting,
    )  # fmt: skip


def joint_attention_backward(
    grad: Tensor, source: Tensor, target: Tensor, active: Tensor, alpha: Tensor | None, heads: int, frames: bool,
    softmax: bool, scale: float, needs_source: bool, needs_target: bool, needs_static: bool, needs_alpha: bool,
    outputs: list[Tensor],
) -> None:  # fmt: skip
    B, P = grad.shape[0], grad.shape[3]
    setting = _setting("joint_attention_of_scores", source, P)
    blocks = triton.cdiv(P, setting["BW"])
    shares = splits(source.device, B, heads * blocks)

    def memory(needed: bool, dtype: torch.dtype, *size: int) -> Tensor | None:
        return grad.new_empty(size, dtype=dtype) if needed else None

    of_score = memory(needs_source or needs_target, source.dtype, B, heads, P, P)
    of_static = memory(needs_static, torch.float32, shares, heads, P, P)
    of_alpha = memory(needs_alpha, torch.float32, shares, heads, blocks)
    launch(
        _of_scores, (heads, shares, blocks), grad.device, grad.contiguous(), active.contiguous(),
        None if alpha is None else alpha.contiguous(), of_score, of_static, of_alpha, B, P, scale,
        SOFTMAX=softmax, **setting,
    )  # fmt: skip
    if of_static is not None:
        outputs[2].copy_(of_static.sum(0))
    if of_alpha is not None:
        outputs[3].copy_(of_alpha.sum((0, 2)))
    for x, out, needed in ((target, outputs[0], needs_source), (source, outputs[1], needs_target)):
        if needed:
            _gradient(x, of_score, out, heads, frames, out is outputs[1])


def _gradient(x: Tensor, of_score: Tensor | None, out: Tensor, heads: int, frames: bool, by_target: bool) -> None:
    (x, rows), out_rows = kernel_map(x, slices=True), kernel_map(out)[1]
    B, C, T, V = x.shape
    P, K = (T, C // heads * V) if frames else (V, C // heads * T)
    block, chosen = min(_block(P), 64), tile("joint_attention_of_map", x.device, _case(x, P))
    launch(
        _of_map, (B * heads, triton.cdiv(K, chosen["BK"]), triton.cdiv(P, block)), x.device, x, of_score, out,
        pitch(x, rows), pitch(out, out_rows), T, V, C // heads, heads, BP=block, BQ=block, ROWS=rows,
        OUT_ROWS=out_rows, FRAMES=frames, BY_TARGET=by_target, PRECISION=dot_precision(x.dtype), **chosen,
    )  # fmt: skip
