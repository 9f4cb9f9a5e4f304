"""hop_attention in Triton: a program holds the joints of one head, frame after frame; scores never leave it.

Blocks: BV joints and BD channels of a head (both rounded up to a power of two), BN hops. Rows of the attention are
targets. A map is given by its pitch: the distance between rows of channels where it lies channels_last, between samples
where it lies contiguous. Gradients shared by the frames are summed by share and head, then over the shares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._layout import in_format, kernel_map, pitch
from skelops._triton import Tile, dot_precision, launch, launch_by_sample, splits, tile


@triton.jit
def _frame(item, h, pitch, T, joints, D, ROWS: tl.constexpr):
    """Where a head begins in frame ``item`` of a map."""
    b, t = (item // T).to(tl.int64), item % T
    if ROWS:
        return (b * T + t) * joints * pitch + h * D
    return b * pitch + (h * D).to(tl.int64) * T * joints + t * joints


@triton.jit
def _within(joint, pitch, T, joints, BD: tl.constexpr, ROWS: tl.constexpr):
    """Offsets within it, (joints, BD): 32 bits are enough, and half the registers."""
    c = tl.arange(0, BD)
    if ROWS:
        return joint[:, None] * pitch + c[None, :]
    return c[None, :] * (T * joints) + joint[:, None]


@triton.jit
def _load(x, item, h, joint, pitch, T, joints, D, BD: tl.constexpr, ROWS: tl.constexpr):
    here = ((joint >= 0) & (joint < joints))[:, None] & (tl.arange(0, BD) < D)[None, :]
    base = x + _frame(item, h, pitch, T, joints, D, ROWS)
    return tl.load(base + _within(joint, pitch, T, joints, BD, ROWS), mask=here, other=0.0)


@triton.jit
def _store(x, values, item, h, joint, pitch, T, joints, D, BD: tl.constexpr, ROWS: tl.constexpr):
    here = (joint < joints)[:, None] & (tl.arange(0, BD) < D)[None, :]
    base = x + _frame(item, h, pitch, T, joints, D, ROWS)
    tl.store(base + _within(joint, pitch, T, joints, BD, ROWS), values, mask=here)


@triton.jit
def _pairs(x, head, V, other, BV: tl.constexpr):
    """A (V, V) matrix by sources and targets as (targets, sources)."""
    w, v = tl.arange(0, BV)[:, None], tl.arange(0, BV)[None, :]
    return tl.load(x + (head * V + v) * V + w, mask=(w < V) & (v < V), other=other)


@triton.jit
def _hop_keys(hop_key, h, D, n_hops, BD: tl.constexpr, BN: tl.constexpr):
    n, c = tl.arange(0, BN), tl.arange(0, BD)
    here = (n < n_hops)[:, None] & (c < D)[None, :]
    return tl.load(hop_key + (h * n_hops + n)[:, None] * D + c[None, :], mask=here, other=0.0)


@triton.jit
def _softmax(q, k, e, keys, bias, hop, V, n_hops, scale, BV: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip  # noqa: E501
    """Softmax over the sources (targets, sources) and the keys with those of their groups."""
    k = (k.to(tl.float32) + e.to(tl.float32)).to(k.dtype)
    by_hop = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    # tl.gather would put whole rows into every thread.
    for i in range(n_hops):
        column = tl.sum(tl.where((tl.arange(0, BN) == i)[None, :], by_hop, 0.0), 1)
        score += tl.where(hop == i, column[:, None], 0.0)
    score = scale * (score + tl.sum(e.to(tl.float32) * bias[None, :], 1)[None, :])
    score = tl.where((tl.arange(0, BV) < V)[None, :], score, float("-inf"))
    powers = tl.exp(score - tl.max(score, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None], k


@triton.jit
def _of_softmax(softmax, grad, value, factor, PRECISION: tl.constexpr):
    """Gradient of the softmax (targets, sources), its means by the softmax (targets,), and that of the score."""
    of_softmax = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
    mean = tl.sum(softmax * of_softmax, 1)
    return of_softmax, mean, factor * softmax * (of_softmax - mean[:, None])


@triton.jit
def _apply(
    query, key, value, group_key, hop_key, group_bias, static, alpha, hops, groups, y,
    pitch, pitch_x, pitch_y, pitch_g, T, V, G, D, n_hops, items, scale,
    BF: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
    BACK: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """The attention applied to the value; BACK: its transpose applied to a gradient, which gives that of the value."""
    if pitch_x is None:
        pitch_x = pitch
    if pitch_y is None:
        pitch_y = pitch
    h, first = tl.program_id(0), (tl.program_id(1) + FIRST) * BF
    joint, c = tl.arange(0, BV), tl.arange(0, BD)
    bias = tl.load(group_bias + h * D + c, mask=c < D, other=0.0).to(tl.float32)
    keys, hop = _hop_keys(hop_key, h, D, n_hops, BD, BN), _pairs(hops, 0, V, -1, BV).to(tl.int32)
    fixed = _pairs(static, h, V, 0.0, BV).to(tl.float32)
    group = tl.load(groups + joint, mask=joint < V, other=-1).to(tl.int32)
    a = tl.load(alpha).to(tl.float32)
    for item in range(first, tl.minimum(first + BF, items)):
        q = _load(query, item, h, joint, pitch, T, V, D, BD, ROWS)
        k = _load(key, item, h, joint, pitch, T, V, D, BD, ROWS)
        e = _load(group_key, item, h, group, pitch_g, T, G, D, BD, ROWS)
        softmax, _ = _softmax(q, k, e, keys, bias, hop, V, n_hops, scale, BV, BN, PRECISION)
        # Not before: there are no registers to hold it beside the scores.
        x = _load(value, item, h, joint, pitch_x, T, V, D, BD, ROWS)
        attention = (a * softmax + fixed).to(x.dtype)
        out = tl.dot(tl.trans(attention) if BACK else attention, x, input_precision=PRECISION)
        _store(y, out, item, h, joint, pitch_y, T, V, D, BD, ROWS)


@triton.jit
def _of_targets(
    grad, query, key, value, group_key, hop_key, group_bias, static, alpha, hops, groups,
    of_query, of_hops, of_static, of_alpha,
    pitch, pitch_y, pitch_out, pitch_g, T, V, G, D, n_hops, items, scale,
    BV: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients by target: of the query and the hops; and of the attention itself, over one share of the frames."""
    if pitch_out is None:
        pitch_out = pitch
    h, share = tl.program_id(0), tl.program_id(1)
    joint, c, n = tl.arange(0, BV), tl.arange(0, BD), tl.arange(0, BN)
    bias = tl.load(group_bias + h * D + c, mask=c < D, other=0.0).to(tl.float32)
    keys, hop = _hop_keys(hop_key, h, D, n_hops, BD, BN), _pairs(hops, 0, V, -1, BV).to(tl.int32)
    group = tl.load(groups + joint, mask=joint < V, other=-1).to(tl.int32)
    a = tl.load(alpha).to(tl.float32)
    sum_static = tl.zeros((BV, BV), tl.float32)
    sum_hops = tl.zeros((BN, BD), tl.float32)
    sum_alpha = tl.zeros((BV,), tl.float32)
    for item in range(share, items, tl.num_programs(1)):
        q = _load(query, item, h, joint, pitch, T, V, D, BD, ROWS)
        k = _load(key, item, h, joint, pitch, T, V, D, BD, ROWS)
        e = _load(group_key, item, h, group, pitch_g, T, G, D, BD, ROWS)
        softmax, k = _softmax(q, k, e, keys, bias, hop, V, n_hops, scale, BV, BN, PRECISION)
        g = _load(grad, item, h, joint, pitch_y, T, V, D, BD, ROWS)
        x = _load(value, item, h, joint, pitch, T, V, D, BD, ROWS)
        of_attention, mean, of_score = _of_softmax(softmax, g, x, scale * a, PRECISION)
        by_hop = tl.zeros((BV, BN), tl.float32)
        for i in range(n_hops):
            of_hop = tl.sum(tl.where(hop == i, of_score, 0.0), 1)
            by_hop = tl.where((n == i)[None, :], of_hop[:, None], by_hop)
        if of_query is not None:
            out = tl.dot(of_score.to(k.dtype), k, input_precision=PRECISION)
            out = tl.dot(by_hop.to(keys.dtype), keys, out, input_precision=PRECISION)
            _store(of_query, out, item, h, joint, pitch_out, T, V, D, BD, ROWS)
        sum_hops = tl.dot(tl.trans(by_hop).to(q.dtype), q, sum_hops, input_precision=PRECISION)
        sum_static += of_attention
        sum_alpha += mean
    part = (share * tl.num_programs(0) + h).to(tl.int64)
    w, v = joint[:, None], joint[None, :]
    tl.store(of_static + (part * V + v) * V + w, sum_static, mask=(w < V) & (v < V))
    here = (n < n_hops)[:, None] & (c < D)[None, :]
    tl.store(of_hops + (part * n_hops + n)[:, None] * D + c[None, :], sum_hops, mask=here)
    tl.store(of_alpha + part, tl.sum(tl.where(joint < V, sum_alpha, 0.0), 0))


@triton.jit
def _of_sources(
    grad, query, key, value, group_key, hop_key, group_bias, static, alpha, hops, groups,
    of_key, of_group_key, of_bias,
    pitch, pitch_y, pitch_out, pitch_g, group_pitch, T, V, G, D, n_hops, items, scale,
    BV: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients by source: of the key, and of the key and bias of the groups, over one share of the frames."""
    if pitch_out is None:
        pitch_out = pitch
    h, share = tl.program_id(0), tl.program_id(1)
    joint, c = tl.arange(0, BV), tl.arange(0, BD)
    bias = tl.load(group_bias + h * D + c, mask=c < D, other=0.0).to(tl.float32)
    keys, hop = _hop_keys(hop_key, h, D, n_hops, BD, BN), _pairs(hops, 0, V, -1, BV).to(tl.int32)
    group = tl.load(groups + joint, mask=joint < V, other=-1).to(tl.int32)
    a = tl.load(alpha).to(tl.float32)
    sum_bias = tl.zeros((BD,), tl.float32)
    for item in range(share, items, tl.num_programs(1)):
        q = _load(query, item, h, joint, pitch, T, V, D, BD, ROWS)
        k = _load(key, item, h, joint, pitch, T, V, D, BD, ROWS)
        e = _load(group_key, item, h, group, pitch_g, T, G, D, BD, ROWS)
        softmax, _ = _softmax(q, k, e, keys, bias, hop, V, n_hops, scale, BV, BN, PRECISION)
        g = _load(grad, item, h, joint, pitch_y, T, V, D, BD, ROWS)
        x = _load(value, item, h, joint, pitch, T, V, D, BD, ROWS)
        _, _, of_score = _of_softmax(softmax, g, x, scale * a, PRECISION)
        of_k = tl.dot(tl.trans(of_score).to(q.dtype), q, input_precision=PRECISION)
        if of_key is not None:
            _store(of_key, of_k, item, h, joint, pitch_out, T, V, D, BD, ROWS)
        of_source = tl.sum(of_score, 0)
        sum_bias += tl.sum(of_source[:, None] * e.to(tl.float32), 0)
        if of_group_key is not None:
            of_k += of_source[:, None] * bias[None, :]
            for i in range(G):
                one = i + tl.zeros((1,), tl.int32)
                total = tl.sum(tl.where((group == i)[:, None], of_k, 0.0), 0)
                _store(of_group_key, total[None, :], item, h, one, group_pitch, T, G, D, BD, ROWS)
    part = (share * tl.num_programs(0) + h).to(tl.int64)
    tl.store(of_bias + part * D + c, sum_bias, mask=c < D)


def _other(one: int, first: int) -> int | None:
    """A pitch, None where it is the first: offsets known to be equal share their registers."""
    return None if one == first else one


def _setting(kernel: str, x: Tensor, hop_key: Tensor, V: int, rows: bool) -> Tile:
    case = "float32" if x.dtype == torch.float32 else "16-bit"
    _, n_hops, D = hop_key.shape
    blocks = {name: max(16, triton.next_power_of_2(size)) for name, size in (("BV", V), ("BD", D), ("BN", n_hops))}
    return {**tile(kernel, x.device, case), **blocks, "ROWS": rows, "PRECISION": dot_precision(x.dtype)}


def _run(
    qkv: Sequence[Tensor], group_key: Tensor, parameters: list[Tensor], y: Tensor, pitches: tuple[int | None, ...],
    back: bool, rows: bool, scale: float,
) -> None:  # fmt: skip
    B, _, T, V = y.shape
    H, n_hops, D = parameters[0].shape
    setting = _setting("hop_attention", y, parameters[0], V, rows)
    launch_by_sample(
        _apply, (H,), triton.cdiv(B * T, setting["BF"]), y.device, *qkv, group_key, *parameters, y,
        *pitches, T, V, group_key.shape[3], D, n_hops, B * T, scale, BACK=back, **setting,
    )  # fmt: skip


def hop_attention(
    qkv: Tensor, group_key: Tensor, hop_key: Tensor, group_bias: Tensor, static: Tensor, alpha: Tensor, hops: Tensor,
    groups: Tensor, heads: int, scale: float, outputs: list[Tensor],
) -> None:  # fmt: skip
    rows = kernel_map(qkv)[1]
    qkv, group_key = (in_format(x, rows, slices=True) for x in (qkv, group_key))
    parameters = [x.contiguous() for x in (hop_key, group_bias, static, alpha, hops, groups)]
    of_qkv = pitch(qkv, rows)
    pitches = of_qkv, None, _other(pitch(outputs[0], rows), of_qkv), pitch(group_key, rows)
    _run(qkv.chunk(3, 1), group_key, parameters, outputs[0], pitches, False, rows, scale)


def hop_attention_backward(
    grad: Tensor, qkv: Tensor, group_key: Tensor, hop_key: Tensor, group_bias: Tensor, static: Tensor, alpha: Tensor,
    hops: Tensor, groups: Tensor, heads: int, scale: float, needs: list[bool], outputs: list[Tensor],
) -> None:  # fmt: skip
    """Three passes, by target, by source and of the value: what one alone would hold does not fit the registers."""
    rows = kernel_map(qkv)[1]
    grad, qkv, group_key = (in_format(x, rows, slices=True) for x in (grad, qkv, group_key))
    query, key, value = qkv.chunk(3, 1)
    B, C, T, G = group_key.shape
    (H, n_hops, D), V = hop_key.shape, qkv.shape[3]
    parameters = [x.contiguous() for x in (hop_key, group_bias, static, alpha, hops, groups)]
    shares = splits(qkv.device, B * T, heads)
    sizes = (H, n_hops, D), (H, D), (H, V, V), (H,)
    of_hops, of_bias, of_static, of_alpha = (qkv.new_empty(shares, *size, dtype=torch.float32) for size in sizes)
    # Gradients have the format of their maps, which need not be that of the pass.
    written = [_in_format_empty(out, rows) if need else None for out, need in zip(outputs[:2], needs, strict=False)]
    of_qkv, of_group_key = written
    of_query, of_key, of_value = (None, None, None) if of_qkv is None else of_qkv.chunk(3, 1)
    of_map, of_grad, of_groups = (pitch(x, rows) for x in (qkv, grad, group_key))
    of_result = _other(3 * C if rows else 3 * C * T * V, of_map)
    maps, shape = (grad, query, key, value, group_key), (T, V, G, D, n_hops, B * T, scale)
    if of_value is not None:
        pitches = of_map, _other(of_grad, of_map), of_result, of_groups
        _run((query, key, grad), group_key, parameters, of_value, pitches, True, rows, scale)
    pitches = of_map, of_grad, of_result, of_groups
    if needs[0] or needs[2] or needs[4] or needs[5]:
        launch(
            _of_targets, (heads, shares), qkv.device, *maps, *parameters, of_query, of_hops, of_static, of_alpha,
            *pitches, *shape, **_setting("hop_attention_targets", qkv, hop_key, V, rows),
        )  # fmt: skip
    if needs[0] or needs[1] or needs[3]:
        launch(
            _of_sources, (heads, shares), qkv.device, *maps, *parameters, of_key, of_group_key, of_bias,
            *pitches, C if rows else C * T * G, *shape, **_setting("hop_attention_sources", qkv, hop_key, V, rows),
        )  # fmt: skip
    for out, result in zip(outputs, written, strict=False):
        if result is not None and result is not out:
            out.copy_(result)
    sums = of_hops.sum(0), of_bias.sum(0), of_static.sum(0), of_alpha.sum().view(1)
    for out, total, need in zip(outputs[2:], sums, needs[2:], strict=True):
        if need:
            out.copy_(total)


def _in_format_empty(out: Tensor, rows: bool) -> Tensor:
    """The output where it has the format of the pass, else memory to be copied to it."""
    if kernel_map(out)[1] == rows:
        return out
    return torch.empty_like(out, memory_format=torch.channels_last if rows else torch.contiguous_format)
