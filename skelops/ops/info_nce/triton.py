"""info_nce in Triton: the pass of queue_attention, then one program per row for the key, the extras and the loss."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._triton import launch, tile
from skelops.ops.queue_attention.triton import LOWEST, SMALLEST, merged_state, merged_sums, padded, queue_pass


@triton.jit
def _unit(x, NORMALIZE: tl.constexpr):
    """Rows of a block of x at unit length, and the lengths that they had."""
    if not NORMALIZE:
        return x, tl.full((x.shape[0],), 1.0, tl.float32)
    length = tl.maximum(tl.sqrt_rn(tl.sum(x * x, 1)), SMALLEST)
    return x / length[:, None], length


@triton.jit
def _entries(key, positives, negatives, n, i, d, P, E, D: tl.constexpr, NORMALIZE: tl.constexpr):
    """Entries i of row n at unit length, and their lengths: the key, then extra positives, then extra negatives."""
    inside = d[None, :] < D
    x = tl.load(key + (n + 0 * i)[:, None] * D + d[None, :], mask=(i == 0)[:, None] & inside, other=0.0).to(tl.float32)
    if positives is not None:
        here = ((i > 0) & (i <= P))[:, None] & inside
        x += tl.load(positives + (n * P + i - 1)[:, None] * D + d[None, :], mask=here, other=0.0).to(tl.float32)
    if negatives is not None:
        here = ((i > P) & (i <= P + E))[:, None] & inside
        x += tl.load(negatives + (n * E + i - 1 - P)[:, None] * D + d[None, :], mask=here, other=0.0).to(tl.float32)
    return _unit(x, NORMALIZE)


@triton.jit
def _add_exp(most, total, logits, here):
    """A log-sum-exp as most + log(total), kept apart so that a difference of two keeps its digits, with more logits."""
    logits = tl.where(here, logits, LOWEST)
    largest = tl.maximum(most, tl.max(logits, 0))
    return largest, total * tl.exp(most - largest) + tl.sum(tl.where(here, tl.exp(logits - largest), 0.0), 0)


@triton.jit
def _finish(
    query, key, positives, negatives, state, above, sums, loss, lse, rank, log_weights, mean, N, P, E, splits, scale,
    D: tl.constexpr, NORMALIZE: tl.constexpr, BE: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    count = 1 + P + E
    row, _row_length = _unit(tl.load(query + n * D + d, mask=d < D, other=0.0).to(tl.float32)[None, :], NORMALIZE)
    first, _key_length = _entries(key, positives, negatives, n, tl.arange(0, 1), d, 0, 0, D, NORMALIZE)
    of_key = tl.sum(tl.sum(first * row, 1), 0) * scale

    queue_most, queue_total = merged_state(state, n, N, splits, BS)
    most, total = queue_most, queue_total
    positive, positive_total = tl.full((), LOWEST, tl.float32), tl.zeros((), tl.float32)
    better = tl.zeros((), tl.int64)
    for s0 in range(0, splits, BS):
        s = s0 + tl.arange(0, BS)
        better += tl.sum(tl.load(above + s.to(tl.int64) * N + n, mask=s < splits, other=0).to(tl.int64), 0)
    for i0 in range(0, count, BE):
        i = i0 + tl.arange(0, BE)
        unit, _length = _entries(key, positives, negatives, n, i, d, P, E, D, NORMALIZE)
        logits = tl.sum(unit * row, 1) * scale
        most, total = _add_exp(most, total, logits, i < count)
        positive, positive_total = _add_exp(positive, positive_total, logits, i <= P)
        better += tl.sum(((i > P) & (i < count) & (logits > of_key)).to(tl.int64), 0)

    log_total = tl.log(total)
    tl.store(loss + n, (most - positive) + (log_total - tl.log(positive_total / (1 + P))))
    tl.store(lse + n, most + log_total)
    tl.store(rank + n, better)
    merged = tl.zeros((BD,), tl.float32)
    if sums is not None:
        merged = merged_sums(state, sums, n, queue_most, N, splits, d, D, BS) * (tl.exp(queue_most - most) / total)
    for i0 in range(0, count, BE):
        i = i0 + tl.arange(0, BE)
        unit, _length = _entries(key, positives, negatives, n, i, d, P, E, D, NORMALIZE)
        logits = (tl.sum(unit * row, 1) * scale - most) - log_total
        tl.store(log_weights + n * count + i, logits, mask=i < count)
        if sums is not None:
            weights = tl.where(i < count, tl.exp(logits), 0.0)  # beyond the last entry the exponent may be infinite
            merged += tl.sum(weights[:, None] * unit, 0)
    if sums is not None:
        tl.store(mean + n * D + d, merged, mask=d < D)


@triton.jit
def _through_unit(gradient, unit, length, NORMALIZE: tl.constexpr):
    """The gradient of x from that of x / max(|x|, 1e-12); a shorter x is not of unit length, and only scaled."""
    if not NORMALIZE:
        return gradient
    along = tl.where(length > SMALLEST, tl.sum(unit * gradient, 1), 0.0)
    return (gradient - along[:, None] * unit) / length[:, None]


@triton.jit
def _backward(
    loss_gradient, lse_gradient, query, key, positives, negatives, log_weights, mean,
    query_gradient, key_gradient, positives_gradient, negatives_gradient, P, E, loss_stride, lse_stride, share, scale,
    D: tl.constexpr, NORMALIZE: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    inside = d[None, :] < D
    count = 1 + P + E
    of_loss = tl.zeros((), tl.float32)
    if loss_gradient is not None:
        of_loss = tl.load(loss_gradient + n * loss_stride) * share
    of_all = of_loss
    if lse_gradient is not None:
        of_all += tl.load(lse_gradient + n * lse_stride)
    row, row_length = _unit(tl.load(query + n * D + d[None, :], mask=inside, other=0.0).to(tl.float32), NORMALIZE)

    positive, total = tl.full((), LOWEST, tl.float32), tl.zeros((), tl.float32)
    for i0 in range(0, 1 + P, BE):
        i = i0 + tl.arange(0, BE)
        positive, total = _add_exp(
            positive, total, tl.load(log_weights + n * count + i, mask=i <= P, other=0.0), i <= P
        )

    pulled = tl.zeros((1, BD), tl.float32)
    for i0 in range(0, count, BE):
        i = i0 + tl.arange(0, BE)
        unit, length = _entries(key, positives, negatives, n, i, d, P, E, D, NORMALIZE)
        logits = tl.load(log_weights + n * count + i, mask=i < count, other=LOWEST)
        pull = tl.where(i <= P, of_loss * tl.exp(logits - positive) / total, 0.0)
        pulled += tl.sum(pull[:, None] * unit, 0)[None, :]
        weights = scale * (of_all * tl.exp(logits) - pull)
        gradient = _through_unit(weights[:, None] * row, unit, length, NORMALIZE)
        if key_gradient is not None:
            tl.store(key_gradient + (n + 0 * i)[:, None] * D + d[None, :], gradient, mask=(i == 0)[:, None] & inside)
        if positives_gradient is not None:
            here = ((i > 0) & (i <= P))[:, None] & inside
            tl.store(positives_gradient + (n * P + i - 1)[:, None] * D + d[None, :], gradient, mask=here)
        if negatives_gradient is not None:
            here = ((i > P) & (i < count))[:, None] & inside
            tl.store(negatives_gradient + (n * E + i - 1 - P)[:, None] * D + d[None, :], gradient, mask=here)
    if query_gradient is not None:
        of_mean = tl.load(mean + n * D + d[None, :], mask=inside, other=0.0)
        gradient = _through_unit(scale * (of_all * of_mean - pulled), row, row_length, NORMALIZE)
        tl.store(query_gradient + n * D + d[None, :], gradient, mask=inside)


def _sizes(kernel: str, query: Tensor, entries: int) -> dict[str, int]:
    D = query.shape[1]
    sizes = tile(kernel, query.device, "default" if D <= 256 else "wide")
    return {**sizes, "BE": min(sizes["BE"], triton.next_power_of_2(entries)), "BD": padded(D)}


def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    extra_positives: Tensor | None,
    extra_negatives: Tensor | None,
    valid: Tensor | None,
    temperature: float,
    normalize: bool,
    each: bool,
    averaged: bool,
    gradient: bool,
    outputs: list[Tensor],
) -> None:
    loss, lse, rank, log_weights, mean = outputs
    N, D = query.shape
    query, key = query.contiguous(), key.contiguous()
    extras = [None if x is None else x.contiguous() for x in (extra_positives, extra_negatives)]
    P, E = (0 if x is None else x.shape[1] for x in extras)
    losses = loss if each else torch.empty_like(lse)
    state, above, sums = queue_pass(
        "queue_attention", query, queue, key, None, None, valid, 1 / temperature, normalize, mean if gradient else None
    )
    launch(
        _finish, (N,), query.device, query, key, *extras, state, above, sums, losses, lse, rank, log_weights, mean,
        N, P, E, state.shape[1], 1 / temperature, D=D, NORMALIZE=normalize, **_sizes("info_nce", query, 1 + P + E),
    )  # fmt: skip
    if not each:
        (torch.mean if averaged else torch.sum)(losses, 0, out=loss)


def info_nce_backward(
    loss_gradient: Tensor | None,
    lse_gradient: Tensor | None,
    query: Tensor,
    key: Tensor,
    extra_positives: Tensor | None,
    extra_negatives: Tensor | None,
    log_weights: Tensor,
    mean: Tensor,
    temperature: float,
    normalize: bool,
    each: bool,
    averaged: bool,
    needs: list[bool],
    outputs: list[Tensor],
) -> None:
    N, D = query.shape
    inputs = [None if x is None else x.contiguous() for x in (query, key, extra_positives, extra_negatives)]
    P, E = (0 if x is None else x.shape[1] for x in inputs[2:])
    upstream = [None if g is None else g.expand(N) for g in (loss_gradient, lse_gradient)]
    gradients = [out if wanted else None for out, wanted in zip(outputs, needs, strict=True)]
    share = 1 / N if averaged and N else 1.0
    launch(
        _backward, (N,), query.device, *upstream, *inputs, log_weights.contiguous(), mean.contiguous(), *gradients,
        P, E, *(0 if g is None else g.stride(0) for g in upstream), share, 1 / temperature,
        D=D, NORMALIZE=normalize, **_sizes("info_nce_backward", query, 1 + P + E),
    )  # fmt: skip
