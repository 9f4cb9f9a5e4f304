"""queue_attention in Triton: one pass over the queue gives lse and mean, in parts that a small kernel merges.

A program keeps a block of query rows and what they gathered on chip, and walks through its split of the queue; a tile
of slots is loaded once for both products. Maxima are those of the products without the factor of the logits: rows that
are still to be normalised, and 16-bit ones, enter the product exactly as they are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._triton import dot_precision, launch, processors, tile

LOWEST = tl.constexpr(-3.0e38)  # below every product, and finite: an infinite maximum less itself would be NaN
SMALLEST = tl.constexpr(1e-12)  # a shorter vector is divided by this, as torch.nn.functional.normalize does


@triton.jit
def _row_products(x, y, row, here, D: tl.constexpr):
    """Products of rows (N, D) with each other, in float32; a few columns at a time, which needs few registers."""
    total = tl.zeros(row.shape, tl.float32)
    for d0 in range(0, D, 16):
        d = d0 + tl.arange(0, 16)
        at, inside = row.to(tl.int64)[:, None] * D + d[None, :], here[:, None] & (d < D)[None, :]
        a, b = tl.load(x + at, mask=inside, other=0.0), tl.load(y + at, mask=inside, other=0.0)
        total += tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)
    return total


@triton.jit
def _row_lengths(x, row, here, D: tl.constexpr):
    return tl.maximum(tl.sqrt_rn(_row_products(x, x, row, here, D)), SMALLEST)


@triton.jit
def _load_block(x, row, here, stride_row, stride_column, column, D: tl.constexpr, DOT: tl.constexpr):
    at = row.to(tl.int64)[:, None] * stride_row + column.to(tl.int64)[None, :] * stride_column
    return tl.load(x + at, mask=here[:, None] & (column < D)[None, :], other=0.0).to(DOT)


@triton.jit
def _add_weighted(sums, weights, slots, PRECISION: tl.constexpr):
    """sums + weights @ slots. To slots of 16 bits the weights come in parts that hold all their digits."""
    if slots.dtype == tl.float32:
        return tl.dot(weights, slots, sums, input_precision=PRECISION)
    for _ in tl.static_range(3 if slots.dtype == tl.bfloat16 else 2):
        part = weights.to(slots.dtype)
        sums = tl.dot(part, slots, sums)
        weights -= part.to(tl.float32)
    return sums


@triton.jit
def _pass(
    query, queue, key, gradient, out, valid, state, above, sums, N, Q, stride_slot, stride_dim, chunk, scale,
    D: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Largest logit and sum of weights per row and split (2, splits, N), and of the slots weighted by them.

    With ``key``, how many products exceed the key's. With ``gradient``, weights count times its product with slot less
    ``out``: differences of products, not of sums, keep their digits where one slot has all the weight.
    """
    split = tl.program_id(1)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    here = row < N
    WHOLE: tl.constexpr = D <= BK and D <= BD
    same: tl.constexpr = query.dtype.element_ty == queue.dtype.element_ty and gradient is None
    DOT: tl.constexpr = query.dtype.element_ty if same else tl.float32
    # Weights are at most one; their last parts must not fall below the smallest float16.
    STRETCH: tl.constexpr = 4096.0 if tl.float16 == DOT else 1.0

    filled = Q if valid is None else tl.minimum(tl.maximum(tl.load(valid).to(tl.int64), 0), Q).to(tl.int32)
    begin = split * chunk
    end = tl.minimum(begin + chunk, filled)
    factor = tl.zeros((BM,), tl.float32) + scale
    if NORMALIZE:
        factor = scale / _row_lengths(query, row, here, D)
    if key is not None:
        threshold = _row_products(query, key, row, here, D)
        if NORMALIZE:
            threshold = threshold / _row_lengths(key, row, here, D)
    if gradient is not None:
        along = _row_products(gradient, out, row, here, D)
    if WHOLE:
        rows = _load_block(query, row, here, D, 1, d, D, DOT)
        if gradient is not None:
            upstream = _load_block(gradient, row, here, D, 1, d, D, DOT)

    most = tl.full((BM,), LOWEST, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    count = tl.zeros((BM,), tl.int32)
    mean = tl.zeros((BM, BD), tl.float32)
    for j0 in range(begin, end, BN):
        j = j0 + tl.arange(0, BN)
        slots = _load_block(queue, j, j < end, stride_slot, stride_dim, d, D, DOT)
        if WHOLE:
            products = tl.dot(rows, slots.T, input_precision=PRECISION)
            if gradient is not None:
                shares = tl.dot(upstream, slots.T, input_precision=PRECISION)
        else:
            products = tl.zeros((BM, BN), tl.float32)
            shares = tl.zeros((BM, BN), tl.float32)
            for d0 in range(0, D, BK):
                e = d0 + tl.arange(0, BK)
                piece = _load_block(queue, j, j < end, stride_slot, stride_dim, e, D, DOT).T
                rows = _load_block(query, row, here, D, 1, e, D, DOT)
                products = tl.dot(rows, piece, products, input_precision=PRECISION)
                if gradient is not None:
                    upstream = _load_block(gradient, row, here, D, 1, e, D, DOT)
                    shares = tl.dot(upstream, piece, shares, input_precision=PRECISION)
        products = tl.where((j < end)[None, :], products, float("-inf"))
        if key is not None:
            count += tl.sum((products > threshold[:, None]).to(tl.int32), 1)
        largest = tl.maximum(most, tl.max(products, 1))
        shrink = tl.exp((most - largest) * factor)
        weights = tl.exp((products - largest[:, None]) * factor[:, None])
        total = total * shrink + tl.sum(weights, 1)
        most = largest
        if sums is not None:
            if gradient is not None:
                weights *= shares - along[:, None]
            mean = _add_weighted(mean * shrink[:, None], weights * STRETCH, slots, PRECISION)

    at = split.to(tl.int64) * N + row
    if tl.program_id(2) == 0:
        tl.store(state + at, tl.where(total == 0, LOWEST, most * factor), mask=here)
        tl.store(state + tl.num_programs(1).to(tl.int64) * N + at, total, mask=here)
        if key is not None:
            tl.store(above + at, count, mask=here)
    if sums is not None:
        tl.store(sums + at[:, None] * D + d[None, :], mean / STRETCH, mask=here[:, None] & (d < D)[None, :])


@triton.jit
def merged_state(state, n, N, splits, BS: tl.constexpr):
    """Largest logit of row n, and the sum of weights relative to it."""
    most, total = tl.full((), LOWEST, tl.float32), tl.zeros((), tl.float32)
    for s0 in range(0, splits, BS):
        s = s0 + tl.arange(0, BS)
        at = s.to(tl.int64) * N + n
        part = tl.load(state + at, mask=s < splits, other=LOWEST)
        weights = tl.load(state + (s.to(tl.int64) + splits) * N + n, mask=s < splits, other=0.0)
        largest = tl.maximum(most, tl.max(part, 0))
        total = total * tl.exp(most - largest) + tl.sum(weights * tl.exp(part - largest), 0)
        most = largest
    return most, total


@triton.jit
def merged_sums(state, sums, n, most, N, splits, d, D: tl.constexpr, BS: tl.constexpr):
    """The weighted sums of row n, their weights relative to the logit ``most``."""
    merged = tl.zeros(d.shape, tl.float32)
    for s0 in range(0, splits, BS):
        s = s0 + tl.arange(0, BS)
        at = s.to(tl.int64) * N + n
        share = tl.exp(tl.load(state + at, mask=s < splits, other=LOWEST) - most)
        inside = (s < splits)[:, None] & (d < D)[None, :]
        merged += tl.sum(share[:, None] * tl.load(sums + at[:, None] * D + d[None, :], mask=inside, other=0.0), 0)
    return merged


@triton.jit
def _merge(state, sums, lse, out, N, splits, D: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    most, total = merged_state(state, n, N, splits, BS)
    mean = merged_sums(state, sums, n, most, N, splits, d, D, BS)
    tl.store(lse + n, tl.where(total == 0, float("-inf"), most + tl.log(total)))
    tl.store(out + n * D + d, mean / tl.where(total == 0, 1.0, total), mask=d < D)


@triton.jit
def _merge_backward(
    state, sums, lse_gradient, out, query_gradient, N, splits, scale,
    D: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    most, total = merged_state(state, n, N, splits, BS)
    slope = merged_sums(state, sums, n, most, N, splits, d, D, BS) / tl.where(total == 0, 1.0, total)
    if lse_gradient is not None:
        slope += tl.load(lse_gradient + n) * tl.load(out + n * D + d, mask=d < D, other=0.0)
    tl.store(query_gradient + n * D + d, scale * slope, mask=d < D)


def padded(size: int) -> int:
    """A length that a block can have and a dot can take."""
    return max(16, triton.next_power_of_2(size))


def queue_pass(
    kernel: str,
    query: Tensor,
    queue: Tensor,
    key: Tensor | None,
    gradient: Tensor | None,
    out: Tensor | None,
    valid: Tensor | None,
    scale: float,
    normalize: bool,
    mean: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Runs the pass and returns its state (2, splits, N), counts (splits, N) and sums (splits, N, D) to be merged.

    The sums of a single split lie in ``mean``; None leaves them out.
    """
    (N, D), Q = query.shape, queue.shape[0]
    dtype = query.dtype if query.dtype == queue.dtype and gradient is None else torch.float32
    case = "default" if dtype == torch.float32 else "half" + next((f"_{w}" for w in (64, 128, 256) if w >= D), "")
    sizes = tile(kernel, query.device, case)
    needed = {"BM": padded(N), "BN": padded(Q), "BD": padded(D), "BK": padded(D)}
    sizes = {name: min(size, needed.get(name, size)) for name, size in sizes.items()}
    blocks = triton.cdiv(N, sizes["BM"]), triton.cdiv(D, sizes["BD"])
    # More splits fill the chip; their sums shall not take more than half of the bytes of the queue.
    row_bytes = 4 * (2 + (key is not None) + (D if mean is not None else 0))
    most = Q * D * queue.element_size() // (2 * row_bytes * max(1, N))
    splits = max(1, min(2 * processors(query.device) // max(1, blocks[0] * blocks[1]), most))
    chunk = max(1, triton.cdiv(triton.cdiv(Q, sizes["BN"]), splits)) * sizes["BN"]
    splits = max(1, triton.cdiv(Q, chunk))
    state = query.new_empty(2, splits, N, dtype=torch.float32)
    above = None if key is None else query.new_empty(splits, N, dtype=torch.int32)
    sums = mean if mean is None or splits == 1 else mean.new_empty(splits, N, D)
    launch(
        _pass, (blocks[0], splits, blocks[1]), query.device,
        query, queue, key, gradient, out, valid, state, above, sums, N, Q, *queue.stride(), chunk, scale,
        D=D, NORMALIZE=normalize, PRECISION=dot_precision(dtype), **sizes,
    )  # fmt: skip
    return state, above, sums


def queue_attention(query: Tensor, queue: Tensor, scale: float, valid: Tensor | None, outputs: list[Tensor]) -> None:
    N, D = query.shape
    query = query.contiguous()
    lse, out = outputs
    state, _, sums = queue_pass("queue_attention", query, queue, None, None, None, valid, scale, False, out)
    sizes = tile("queue_attention_merge", query.device)
    launch(_merge, (N,), query.device, state, sums, lse, out, N, state.shape[1], D=D, BD=padded(D), **sizes)


def queue_attention_backward(
    lse_gradient: Tensor | None,
    gradient: Tensor,
    query: Tensor,
    queue: Tensor,
    lse: Tensor,
    out: Tensor,
    scale: float,
    valid: Tensor | None,
    outputs: list[Tensor],
) -> None:
    N, D = query.shape
    query, gradient, out = query.contiguous(), gradient.contiguous(), out.contiguous()
    # The softmax comes out of the pass anew, so that weights and their sum are rounded alike.
    slope = torch.empty_like(gradient)
    state, _, sums = queue_pass(
        "queue_attention_backward", query, queue, None, gradient, out, valid, scale, False, slope
    )
    sizes = tile("queue_attention_merge", query.device)
    launch(
        _merge_backward, (N,), query.device, state, sums,
        None if lse_gradient is None else lse_gradient.contiguous(), out, outputs[0],
        N, state.shape[1], scale, D=D, BD=padded(D), **sizes,
    )  # fmt: skip
