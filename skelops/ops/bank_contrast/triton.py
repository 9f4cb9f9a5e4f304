"""bank_contrast in Triton: similarities by tiles, a radix select per anchor and kind, one gather per anchor."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._triton import dot_precision, launch, tile
from skelops._triton_math import hash_keys, hashed, log1p
from skelops.ops.queue_attention.triton import LOWEST, SMALLEST, padded

# What a slot is to an anchor.
NEITHER, SAME, OTHER = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
BINS = tl.constexpr(256)  # of a pass of the radix select, which takes 8 bits of the key


@triton.jit
def _similarity(
    features, labels, bank, bank_labels, visited, similarity, relation, lengths, N, Q,
    D: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Similarities of anchors and slots (N, Q), what the slots are to the anchors, and the lengths of the features."""
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    slot = tl.program_id(0) * BN + tl.arange(0, BN)
    anchors, slots = row < N, slot < Q
    DOT: tl.constexpr = bank.dtype.element_ty if bank.dtype == features.dtype else tl.float32
    products = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM,), tl.float32)
    for d0 in range(0, D, BK):
        d = d0 + tl.arange(0, BK)
        at = row.to(tl.int64)[:, None] * D + d[None, :]
        x = tl.load(features + at, mask=anchors[:, None] & (d < D)[None, :], other=0.0)
        at = slot.to(tl.int64)[:, None] * D + d[None, :]
        y = tl.load(bank + at, mask=slots[:, None] & (d < D)[None, :], other=0.0)
        products = tl.dot(x.to(DOT), y.to(DOT).T, products, input_precision=PRECISION)
        wide = x.to(tl.float32)
        squares += tl.sum(wide * wide, 1)
    length = tl.sqrt_rn(squares)
    if tl.program_id(0) == 0:
        tl.store(lengths + row, length, mask=anchors)
    length = tl.maximum(length, SMALLEST)
    inside = anchors[:, None] & slots[None, :]
    at = row.to(tl.int64)[:, None] * Q + slot[None, :]
    tl.store(similarity + at, products / length[:, None], mask=inside)
    own = tl.load(labels + row, mask=anchors, other=0)
    theirs = tl.load(bank_labels + slot, mask=slots, other=0)
    filled = tl.load(visited + slot, mask=slots, other=0) != 0
    kind = tl.where(own[:, None] == theirs[None, :], SAME, OTHER)
    tl.store(relation + at, tl.where(filled[None, :], kind, NEITHER).to(tl.uint8), mask=inside)


@triton.jit
def _keys(similarity, relation, start, j, Q, kind, key0, key1):
    """Keys of slots j, the smallest to be chosen, and which slots may be. The anchor's row begins at start."""
    here = j < Q
    related = tl.load(relation + start + j, mask=here, other=NEITHER)
    if kind == 2:
        keys = hashed(start + j, key0, key1)
    else:
        # In the order of the floats: zeros of both signs are equal, and a NaN comes last.
        x = tl.load(similarity + start + j, mask=here, other=0.0) + 0.0
        bits = tl.where(x == x, x, float("nan")).to(tl.uint32, bitcast=True)
        keys = bits ^ tl.where(bits >> 31 == 0, 0x80000000, 0xFFFFFFFF)
        if kind == 1:
            keys = keys ^ 0xFFFFFFFF
    return keys, related == tl.where(kind == 0, SAME, OTHER)


@triton.jit
def _select(similarity, relation, seed, chosen, members, Q, positives, hard, drawn, BQ: tl.constexpr):
    """Of one kind the slots with the smallest keys: positives, then hard, then random negatives of an anchor.

    Also how many there were to choose from (N, 3); where they are too few, none is written.
    """
    anchor, kind = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = anchor * Q
    key0, key1 = hash_keys(seed)
    count = tl.where(kind == 0, positives, tl.where(kind == 1, hard, drawn))
    to = chosen + anchor * (positives + hard + drawn)
    to += tl.where(kind == 0, 0, tl.where(kind == 1, positives, positives + hard))

    # The count-th smallest key, from its highest digit to the lowest; rank is its place among those with its digits.
    bins = tl.arange(0, BINS)
    prefix = tl.zeros((), tl.uint32)
    rank, total = count, 0
    for digit in tl.static_range(4):
        sizes = tl.zeros((BINS,), tl.int32)
        for j0 in range(0, Q, BQ):
            keys, may = _keys(similarity, relation, start, j0 + tl.arange(0, BQ), Q, kind, key0, key1)
            if digit > 0:
                may = may & (keys >> (32 - 8 * digit) == prefix)
            sizes += tl.histogram(((keys >> (24 - 8 * digit)) & 255).to(tl.int32), BINS, mask=may)
        if digit == 0:
            total = tl.sum(sizes, 0)
        below = tl.sum((tl.cumsum(sizes, 0) < rank).to(tl.int32), 0)
        rank -= tl.sum(tl.where(bins < below, sizes, 0), 0)
        prefix = (prefix << 8) | below.to(tl.uint32)
    tl.store(members + anchor * 3 + kind, total)

    # What is smaller comes first, then the first of those that equal it.
    smaller, equal = 0, count - rank
    for j0 in range(0, Q, BQ):
        j = j0 + tl.arange(0, BQ)
        keys, may = _keys(similarity, relation, start, j, Q, kind, key0, key1)
        less, same = may & (keys < prefix), may & (keys == prefix)
        steps, ties = less.to(tl.int32), same.to(tl.int32)
        place = tl.where(less, smaller + tl.cumsum(steps, 0), equal + tl.cumsum(ties, 0)) - 1
        tl.store(to + place, j, mask=(less | same) & (place < count) & (total >= count))
        smaller += tl.sum(steps, 0)
        equal += tl.sum(ties, 0)


@triton.jit
def _logits(similarity, slots, i, count, start, scale):
    """Slots that were chosen, and their logits; LOWEST past the last one."""
    here = i < count
    slot = tl.load(slots + i, mask=here, other=0)
    return slot, tl.where(here, tl.load(similarity + start + slot, mask=here, other=0.0) * scale, LOWEST)


@triton.jit
def _log_sum_exp(similarity, slots, count, start, scale, BS: tl.constexpr):
    most, total = tl.full((), LOWEST, tl.float32), tl.zeros((), tl.float32)
    for i0 in range(0, count, BS):
        _slot, logits = _logits(similarity, slots, i0 + tl.arange(0, BS), count, start, scale)
        largest = tl.maximum(most, tl.max(logits, 0))
        total = total * tl.exp(most - largest) + tl.sum(tl.exp(logits - largest), 0)
        most = largest
    return most + tl.log(total)


@triton.jit
def _sigmoid(x):
    small = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, small) / (1.0 + small)


@triton.jit
def _softplus(x):
    return tl.where(x > 0, x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def _rows(bank, slot, here, d, D: tl.constexpr):
    at = slot.to(tl.int64)[:, None] * D + d[None, :]
    return tl.load(bank + at, mask=here[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _add_negatives(
    sums, along, force, lse, bank, similarity, slots, count, start, scale, d, D: tl.constexpr, BR: tl.constexpr
):  # fmt: skip
    for i0 in range(0, count, BR):
        i = i0 + tl.arange(0, BR)
        slot, logits = _logits(similarity, slots, i, count, start, scale)
        weights = tl.where(i < count, force * tl.exp(logits - lse), 0.0)
        sums += tl.sum(weights[:, None] * _rows(bank, slot, i < count, d, D), 0)
        along += tl.sum(tl.where(i < count, weights * logits, 0.0), 0)
    return sums, along


@triton.jit
def _contrast(
    features, bank, similarity, lengths, chosen, members, kept, losses, gradient,
    N, Q, positives, hard, drawn, scale,
    D: tl.constexpr, BN: tl.constexpr, BS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Of an anchor its part of the loss, and of the gradient BD columns."""
    anchor = tl.program_id(0).to(tl.int64)
    start = anchor * Q
    all_kept = 0
    for n0 in range(0, N, BN):
        n = n0 + tl.arange(0, BN)
        at = members + n.to(tl.int64) * 3
        same = tl.load(at, mask=n < N, other=0)
        others = tl.load(at + 1, mask=n < N, other=0)
        all_kept += tl.sum(((n < N) & (same >= positives) & (others >= hard) & (others >= drawn)).to(tl.int32), 0)
    same, others = tl.load(members + anchor * 3), tl.load(members + anchor * 3 + 1)
    mine = (same >= positives) & (others >= hard) & (others >= drawn)
    share = 1.0 / (2.0 * positives * tl.maximum(all_kept, 1).to(tl.float32))
    # The slots of an anchor that is left out were not written.
    pulls, pushes, draws = tl.where(mine, positives, 0), tl.where(mine, hard, 0), tl.where(mine, drawn, 0)
    pulled_to = chosen + anchor * (positives + hard + drawn)
    hardest, random = pulled_to + positives, pulled_to + positives + hard

    hard_lse = _log_sum_exp(similarity, hardest, pushes, start, scale, BS)
    random_lse = _log_sum_exp(similarity, random, draws, start, scale, BS)
    loss = tl.zeros((), tl.float32)
    hard_force, random_force = tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    for i0 in range(0, pulls, BS):
        i = i0 + tl.arange(0, BS)
        _slot, logits = _logits(similarity, pulled_to, i, pulls, start, scale)
        here = i < pulls
        loss += tl.sum(tl.where(here, _softplus(hard_lse - logits) + _softplus(random_lse - logits), 0.0), 0)
        hard_force += tl.sum(tl.where(here, _sigmoid(hard_lse - logits), 0.0), 0)
        random_force += tl.sum(tl.where(here, _sigmoid(random_lse - logits), 0.0), 0)
    if tl.program_id(1) == 0:
        tl.store(kept + anchor, mine)
        tl.store(losses + anchor, loss * share)

    if gradient is not None:
        d = tl.program_id(1) * BD + tl.arange(0, BD)
        sums, along = tl.zeros((BD,), tl.float32), tl.zeros((), tl.float32)
        for i0 in range(0, pulls, BR):
            i = i0 + tl.arange(0, BR)
            here = i < pulls
            slot, logits = _logits(similarity, pulled_to, i, pulls, start, scale)
            weights = tl.where(here, _sigmoid(hard_lse - logits) + _sigmoid(random_lse - logits), 0.0)
            sums -= tl.sum(weights[:, None] * _rows(bank, slot, here, d, D), 0)
            along -= tl.sum(tl.where(here, weights * logits, 0.0), 0)
        sums, along = _add_negatives(
            sums, along, hard_force, hard_lse, bank, similarity, hardest, pushes, start, scale, d, D, BR
        )
        sums, along = _add_negatives(
            sums, along, random_force, random_lse, bank, similarity, random, draws, start, scale, d, D, BR
        )
        # Through the normalisation; a vector too short for it was only scaled.
        x = tl.load(features + anchor * D + d, mask=d < D, other=0.0).to(tl.float32)
        size = tl.load(lengths + anchor)
        length = tl.maximum(size, SMALLEST)
        along = tl.where(size < SMALLEST, 0.0, along / scale)
        sums = (sums - along * (x / length)) / length * (scale * share)
        tl.store(gradient + anchor * D + d, tl.where(mine, sums, 0.0), mask=d < D)


def bank_contrast(
    features: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    visited: Tensor,
    seed: Tensor,
    positives: int,
    hard_negatives: int,
    random_negatives: int,
    temperature: float,
    gradient: bool,
    outputs: list[Tensor],
) -> None:
    loss, kept, of_features = outputs
    (N, D), Q, device = features.shape, bank.shape[0], features.device
    features, bank = features.contiguous(), bank.contiguous()
    counts = positives, hard_negatives, random_negatives
    dtype = features.dtype if features.dtype == bank.dtype else torch.float32
    similarity = torch.empty(N, Q, dtype=torch.float32, device=device)
    relation = torch.empty(N, Q, dtype=torch.uint8, device=device)
    lengths, losses = torch.empty(2, N, dtype=torch.float32, device=device)
    sizes = tile("bank_contrast_similarity", device, "default" if dtype == torch.float32 else "half")
    needed = {"BM": padded(N), "BN": padded(Q), "BK": padded(D)}
    sizes = {name: min(size, needed.get(name, size)) for name, size in sizes.items()}
    launch(
        _similarity, (triton.cdiv(Q, sizes["BN"]), triton.cdiv(N, sizes["BM"])), device,
        features, labels.contiguous(), bank, bank_labels.contiguous(), visited.contiguous(), similarity, relation,
        lengths, N, Q, D=D, PRECISION=dot_precision(dtype), **sizes,
    )  # fmt: skip
    chosen = torch.empty(N, sum(counts), dtype=torch.int32, device=device)
    members = torch.empty(N, 3, dtype=torch.int32, device=device)
    sizes = tile("bank_contrast_select", device)
    sizes = {**sizes, "BQ": min(sizes["BQ"], padded(Q))}
    launch(_select, (N, 3), device, similarity, relation, seed, chosen, members, Q, *counts, **sizes)
    sizes = tile("bank_contrast", device)
    sizes = {**sizes, "BD": min(sizes["BD"], padded(D))}
    launch(
        _contrast, (N, triton.cdiv(D, sizes["BD"]) if gradient else 1), device,
        features, bank, similarity, lengths, chosen, members, kept, losses, of_features if gradient else None,
        N, Q, *counts, 1 / temperature, D=D, **sizes,
    )  # fmt: skip
    torch.sum(losses, 0, out=loss)
