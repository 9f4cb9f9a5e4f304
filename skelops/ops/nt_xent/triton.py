"""nt_xent in Triton: a program takes some tokens of a set, and the logits of a tile at a time.

Forward, a program serves one of the two sets of a pair; backward, a set in all its pairs: first the weights that tokens
have in each other's gradient, then their sums. Tokens are multiplied as they are, and the products divided by lengths.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._triton import Tile, dot_precision, launch, tile
from skelops.ops.queue_attention.triton import LOWEST, SMALLEST, padded


@triton.jit
def _rows(x, row, d, token_stride, P, D):
    at = row.to(tl.int64)[:, None] * token_stride + d[None, :]
    return tl.load(x + at, mask=(row < P)[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _lengths(
    tokens, lengths, set_stride, clip_stride, token_stride, N, P, D, BI: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    n, s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.program_id(2) * BI + tl.arange(0, BI)
    total = tl.zeros((BI,), tl.float32)
    for start in range(0, D, BK):
        x = _rows(
            tokens + s.to(tl.int64) * set_stride + n * clip_stride, i, start + tl.arange(0, BK), token_stride, P, D
        )
        total += tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
    tl.store(lengths + (s * N + n) * P + i, tl.maximum(tl.sqrt_rn(total), SMALLEST), mask=i < P)


@triton.jit
def _cosines(x, y, of_x, of_y, i, j, token_stride, P, D, BK: tl.constexpr, PRECISION: tl.constexpr):
    """Cosines between tokens i of x and j of y, whose lengths are given."""
    products = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for start in range(0, D, BK):
        d = start + tl.arange(0, BK)
        a, b = _rows(x, i, d, token_stride, P, D), _rows(y, j, d, token_stride, P, D)
        products = tl.dot(a, tl.trans(b), products, input_precision=PRECISION)
    of_i, of_j = tl.load(of_x + i, mask=i < P, other=1.0), tl.load(of_y + j, mask=j < P, other=1.0)
    return products / (of_i[:, None] * of_j[None, :])


@triton.jit
def _pair(g, PAIRS: tl.constexpr, PAIR_COUNT: tl.constexpr):
    """The sets of pair g."""
    g = g + tl.zeros((), tl.int32)
    a, b = g, g
    for k in tl.static_range(PAIR_COUNT):
        a, b = tl.where(g == k, PAIRS[2 * k], a), tl.where(g == k, PAIRS[2 * k + 1], b)
    return a, b


@triton.jit
def _both_in(u, w, a, b):
    return ((u == a) | (u == b)) & ((w == a) | (w == b))


@triton.jit
def _losses(
    tokens, lengths, losses, mosts, log_totals, set_stride, clip_stride, token_stride, N, P, D, scale,
    PAIRS: tl.constexpr, PAIR_COUNT: tl.constexpr, PRECISION: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Losses of tokens of one set of a pair, and their denominators exp(scale * most) * total."""
    n, g, side = tl.program_id(0).to(tl.int64), tl.program_id(1) // 2, tl.program_id(1) % 2
    i = tl.program_id(2) * BI + tl.arange(0, BI)
    a, b = _pair(g, PAIRS, PAIR_COUNT)
    u, w = tl.where(side == 0, a, b).to(tl.int64), tl.where(side == 0, b, a).to(tl.int64)
    own, of_own = tokens + n * clip_stride + u * set_stride, lengths + (u * N + n) * P
    other, of_other = tokens + n * clip_stride + w * set_stride, lengths + (w * N + n) * P

    most, total = tl.full((BI,), LOWEST, tl.float32), tl.zeros((BI,), tl.float32)
    positive = tl.zeros((BI,), tl.float32)
    for between in tl.static_range(2):
        for start in range(0, P, BJ):
            j = start + tl.arange(0, BJ)
            same, counts = i[:, None] == j[None, :], (j < P)[None, :]
            if between:
                cosine = _cosines(own, other, of_own, of_other, i, j, token_stride, P, D, BK, PRECISION)
                positive += tl.sum(tl.where(same, cosine, 0.0), 1)
            else:
                cosine = _cosines(own, own, of_own, of_own, i, j, token_stride, P, D, BK, PRECISION)
                counts = counts & ~same
            largest = tl.maximum(most, tl.max(tl.where(counts, cosine, LOWEST), 1))
            terms = tl.where(counts, tl.exp(scale * (cosine - largest[:, None])), 0.0)
            total = total * tl.exp(scale * (most - largest)) + tl.sum(terms, 1)
            most = largest
    at = (tl.program_id(1) * N + n) * P + i
    log_total = tl.log(total)
    tl.store(mosts + at, most, mask=i < P)
    tl.store(log_totals + at, log_total, mask=i < P)
    tl.store(losses + at, scale * (most - positive) + log_total, mask=i < P)


@triton.jit
def _softmax(cosine, mosts, log_totals, g, second, n, i, N, P, scale, AXIS: tl.constexpr):
    """Shares of products in the sums of tokens i of the first or second set of a pair; the others lie along an axis."""
    at = ((2 * g + tl.where(second, 1, 0)) * N + n) * P + i
    most, log_total = tl.load(mosts + at, mask=i < P, other=0.0), tl.load(log_totals + at, mask=i < P, other=0.0)
    return tl.exp(scale * (cosine - tl.expand_dims(most, AXIS)) - tl.expand_dims(log_total, AXIS))


@triton.jit
def _weights(
    tokens, lengths, grad, mosts, log_totals, weights, alongs, set_stride, clip_stride, token_stride, S, N, P, D, G,
    scale, rate, PAIRS: tl.constexpr, PAIR_COUNT: tl.constexpr, PRECISION: tl.constexpr,
    BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """What tokens i of a set have from tokens j of a set, as they are, in their gradient at unit length.

    And how much of that lies along tokens i themselves.
    """
    n, u, w = tl.program_id(0).to(tl.int64), tl.program_id(1) % S, tl.program_id(2) % S
    i = tl.program_id(1) // S * BI + tl.arange(0, BI)
    j = tl.program_id(2) // S * BJ + tl.arange(0, BJ)
    x, of_x = tokens + n * clip_stride + u.to(tl.int64) * set_stride, lengths + (u * N + n) * P
    y, of_y = tokens + n * clip_stride + w.to(tl.int64) * set_stride, lengths + (w * N + n) * P
    cosine = _cosines(x, y, of_x, of_y, i, j, token_stride, P, D, BK, PRECISION)
    # The softmax of j is that of the forward pass where its products are rounded alike.
    exchanged = tl.trans(_cosines(y, x, of_y, of_x, j, i, token_stride, P, D, BK, PRECISION))
    weight = tl.zeros((BI, BJ), tl.float32)
    for g in range(0, G):
        a, b = _pair(g, PAIRS, PAIR_COUNT)
        slope = _softmax(cosine, mosts, log_totals, g, u == b, n, i, N, P, scale, 1)
        slope += _softmax(exchanged, mosts, log_totals, g, w == b, n, j, N, P, scale, 0)
        slope -= tl.where((i[:, None] == j[None, :]) & (w != u), 2.0, 0.0)
        weight += tl.where(_both_in(u, w, a, b), tl.load(grad + g) * rate * slope, 0.0)
    weight = tl.where((i[:, None] != j[None, :]) | (w != u), weight, 0.0)
    row = (n * S + u) * P + i
    inside = (i < P)[:, None] & (j < P)[None, :]
    along = tl.sum(tl.where(inside & (weight != 0.0), weight * cosine, 0.0), 1)
    tl.store(alongs + row * tl.num_programs(2) + tl.program_id(2), along, mask=i < P)
    of_j = tl.load(of_y + j, mask=j < P, other=1.0)
    tl.store(weights + row[:, None] * S * P + (w * P + j)[None, :], weight / of_j[None, :], mask=inside)


@triton.jit
def _gradients(
    tokens, lengths, weights, alongs, gradient, set_stride, clip_stride, token_stride, S, N, P, D, parts,
    PAIRS: tl.constexpr, PAIR_COUNT: tl.constexpr, PRECISION: tl.constexpr,
    BI: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Gradient of tokens of a set: the sum of the tokens of all sets that it meets, by their weights."""
    n, u = tl.program_id(0).to(tl.int64), tl.program_id(1) % S
    i = tl.program_id(1) // S * BI + tl.arange(0, BI)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    row = (n * S + u) * P + i
    part = tl.arange(0, BP)
    here = (i < P)[:, None] & (part < parts)[None, :]
    along = tl.sum(tl.load(alongs + row[:, None] * parts + part[None, :], mask=here, other=0.0), 1)
    # Through x / |x| only what is orthogonal to x remains; what was too short is not of unit length, and only scaled.
    length = tl.load(lengths + (u * N + n) * P + i, mask=i < P, other=1.0)
    along = tl.where(length > SMALLEST, along / length, 0.0)
    total = tl.zeros((BI, BD), tl.float32)
    for start in range(0, S * P, BK):
        k = start + tl.arange(0, BK)
        w, j = k // P, k % P
        meets = w < 0
        for g in tl.static_range(PAIR_COUNT):
            meets = meets | _both_in(u, w, PAIRS[2 * g], PAIRS[2 * g + 1])
        inside = (i < P)[:, None] & meets[None, :]
        weight = tl.load(weights + row[:, None] * S * P + k[None, :], mask=inside, other=0.0)
        weight -= tl.where((u * P + i)[:, None] == k[None, :], along[:, None], 0.0)
        at = n * clip_stride + w.to(tl.int64) * set_stride + j.to(tl.int64) * token_stride
        values = tl.load(tokens + at[:, None] + d[None, :], mask=meets[:, None] & (d < D)[None, :], other=0.0)
        total = tl.dot(weight, values.to(tl.float32), total, input_precision=PRECISION)
    at = ((u * N + n) * P + i)[:, None] * D + d[None, :]
    # A set that meets none may hold anything.
    result = tl.where(total == 0.0, 0.0, total / length[:, None])
    tl.store(gradient + at, result, mask=(i < P)[:, None] & (d < D)[None, :])


def _sizes(kernel: str, tokens: Tensor) -> Tile:
    P, D = tokens.shape[2:]
    most = {"BI": padded(P), "BJ": padded(P), "BD": padded(D)}
    chosen = tile(kernel, tokens.device, "float32" if tokens.dtype == torch.float32 else "16-bit")
    return {name: min(size, most.get(name, size)) for name, size in chosen.items()}


def _measured(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens with a stride of 1 along D, and their lengths (S, N, P)."""
    x = tokens if tokens.stride(3) == 1 else tokens.contiguous()
    S, N, P, D = x.shape
    lengths, sizes = x.new_empty(S, N, P, dtype=torch.float32), _sizes("nt_xent_lengths", x)
    grid = N, S, triton.cdiv(P, sizes["BI"])
    launch(_lengths, grid, x.device, x, lengths, *x.stride()[:3], N, P, D, **sizes)
    return x, lengths


def nt_xent(tokens: Tensor, pairs: list[int], temperature: float, outputs: list[Tensor]) -> None:
    loss, most, log_total = outputs
    losses = torch.empty_like(most)
    x, lengths = _measured(tokens)
    _, N, P, D = x.shape
    sizes = _sizes("nt_xent_losses", x)
    launch(
        _losses, (N, len(pairs), triton.cdiv(P, sizes["BI"])), x.device,
        x, lengths, losses, most, log_total, *x.stride()[:3], N, P, D, 1 / temperature,
        PAIRS=tuple(pairs), PAIR_COUNT=len(pairs) // 2, PRECISION=dot_precision(x.dtype), **sizes,
    )  # fmt: skip
    torch.mean(losses.flatten(1), 1, out=loss)


def nt_xent_backward(
    grad: Tensor,
    tokens: Tensor,
    most: Tensor,
    log_total: Tensor,
    pairs: list[int],
    temperature: float,
    outputs: list[Tensor],
) -> None:
    x, lengths = _measured(tokens)
    S, N, P, D = x.shape
    chosen = {"PAIRS": tuple(pairs), "PAIR_COUNT": len(pairs) // 2}
    sizes = _sizes("nt_xent_weights", x)
    blocks, parts = S * triton.cdiv(P, sizes["BI"]), S * triton.cdiv(P, sizes["BJ"])
    weights, alongs = (x.new_empty(N, S * P, size, dtype=torch.float32) for size in (S * P, parts))
    launch(
        _weights, (N, blocks, parts), x.device,
        x, lengths, grad.contiguous(), most.contiguous(), log_total.contiguous(), weights, alongs, *x.stride()[:3],
        S, N, P, D, len(pairs) // 2, 1 / temperature, 1 / (temperature * 2 * P * max(N, 1)),
        PRECISION=dot_precision(x.dtype), **chosen, **sizes,
    )  # fmt: skip
    sizes = _sizes("nt_xent_gradients", x)
    # Weights have more digits than tokens of 16 bits, which TF32 holds whole.
    precision = dot_precision(x.dtype) if x.dtype == torch.float32 else "tf32"
    launch(
        _gradients, (N, S * triton.cdiv(P, sizes["BI"]), triton.cdiv(D, sizes["BD"])), x.device,
        x, lengths, weights, alongs, *outputs, *x.stride()[:3], S, N, P, D, parts,
        PRECISION=precision, BP=triton.next_power_of_2(parts), **chosen, **sizes,
    )  # fmt: skip
