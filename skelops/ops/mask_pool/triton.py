"""mask_pool in Triton: one program per row and block of channels reads the map once.

A mask of any shape is read by strides, zero along the axes that it does not have. Blocks are (BC, BT, BV): channels,
frames, and V rounded up to a power of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._layout import kernel_map
from skelops._triton import Tile, launch, splits, tile


@triton.jit
def _cells(base, b, c, t, C, T, V, stride_b, stride_c, stride_t, stride_v, BV: tl.constexpr):
    """Addresses of a block of a map or mask, and which of them lie inside (BC, BT, BV)."""
    v = tl.arange(0, BV)
    at = c.to(tl.int64)[:, None, None] * stride_c + t.to(tl.int64)[None, :, None] * stride_t
    here = (c < C)[:, None, None] & (t < T)[None, :, None] & (v < V)[None, None, :]
    return base + b * stride_b + at + v[None, None, :] * stride_v, here


@triton.jit
def _total(block):
    """Sum over frames and joints (BC,)."""
    return tl.sum(tl.sum(block, 2), 1)


@triton.jit
def _share(total, size):
    """total / size, 0 where size is 0."""
    return tl.where(size != 0, total / tl.where(size != 0, size, 1.0), 0.0)


@triton.jit
def _sizes(
    mask, sizes, masks, C, T, V, stride_b, stride_c, stride_t, stride_v,
    BC: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Sums of masks (and of what they leave out) over frames and joints, into sizes (2, masks, C)."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside, outside = tl.zeros((BC, BT, BV), tl.float32), tl.zeros((BC, BT, BV), tl.float32)
    for t0 in range(0, T, BT):
        t = t0 + tl.arange(0, BT)
        at, here = _cells(mask, b, c, t, C, T, V, stride_b, stride_c, stride_t, stride_v, BV)
        m = tl.load(at, mask=here, other=0.0).to(tl.float32)
        inside += m
        outside += tl.where(here, 1.0 - m, 0.0)
    tl.store(sizes + b * C + c, _total(inside), mask=c < C)
    tl.store(sizes + (masks + b) * C + c, _total(outside), mask=c < C)


@triton.jit
def _pulls(inside, outside, sizes, b, of_mask, masks, c, C, T, V, SHARED: tl.constexpr):
    """Upstream gradients over what their sums were divided by (BC,)."""
    here = c < C
    pull_in = tl.load(inside + b * C + c, mask=here, other=0.0).to(tl.float32)
    pull_out = tl.load(outside + b * C + c, mask=here, other=0.0).to(tl.float32)
    if sizes is None:
        pull_in, pull_out = pull_in / (T * V), pull_out / (T * V)
    elif SHARED:
        pull_in = _share(pull_in, tl.load(sizes + of_mask))
        pull_out = _share(pull_out, tl.load(sizes + masks + of_mask))
    else:
        pull_in = _share(pull_in, tl.load(sizes + of_mask * C + c, mask=here, other=0.0))
        pull_out = _share(pull_out, tl.load(sizes + (masks + of_mask) * C + c, mask=here, other=0.0))
    return pull_in, pull_out


@triton.jit
def _forward(
    x, mask, inside, outside, C, T, V, rows_per_mask,
    x_b, x_c, x_t, x_v, m_b, m_c, m_t, m_v,
    BY_SIZE: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    # Sums per place in the block, added up at the end: as accurate as a pairwise sum.
    total_in, total_out = tl.zeros((BC, BT, BV), tl.float32), tl.zeros((BC, BT, BV), tl.float32)
    size_in, size_out = tl.zeros((BC, BT, BV), tl.float32), tl.zeros((BC, BT, BV), tl.float32)
    for t0 in range(0, T, BT):
        t = t0 + tl.arange(0, BT)
        at, here = _cells(x, b, c, t, C, T, V, x_b, x_c, x_t, x_v, BV)
        values = tl.load(at, mask=here, other=0.0).to(tl.float32)
        at, here = _cells(mask, b // rows_per_mask, c, t, C, T, V, m_b, m_c, m_t, m_v, BV)
        m = tl.load(at, mask=here, other=0.0).to(tl.float32)
        rest = tl.where(here, 1.0 - m, 0.0)
        total_in += values * m
        total_out += values * rest
        size_in += m
        size_out += rest
    if BY_SIZE:
        of_inside, of_outside = _total(total_in) / (T * V), _total(total_out) / (T * V)
    else:
        of_inside, of_outside = _share(_total(total_in), _total(size_in)), _share(_total(total_out), _total(size_out))
    tl.store(inside + b * C + c, of_inside, mask=c < C)
    tl.store(outside + b * C + c, of_outside, mask=c < C)


@triton.jit
def _backward(
    inside, outside, mask, sizes, grad, masks, C, T, V, rows_per_mask,
    m_b, m_c, m_t, m_v, g_b, g_c, g_t, g_v,
    SHARED: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    pull_in, pull_out = _pulls(inside, outside, sizes, b, b // rows_per_mask, masks, c, C, T, V, SHARED)
    pull_in, pull_out = pull_in[:, None, None], pull_out[:, None, None]
    for t0 in range(0, T, BT):
        t = t0 + tl.arange(0, BT)
        at, here = _cells(mask, b // rows_per_mask, c, t, C, T, V, m_b, m_c, m_t, m_v, BV)
        m = tl.load(at, mask=here, other=0.0).to(tl.float32)
        at, here = _cells(grad, b, c, t, C, T, V, g_b, g_c, g_t, g_v, BV)
        tl.store(at, pull_in * m + pull_out * (1.0 - m), mask=here)


@triton.jit
def _backward_mask(
    grad_inside, grad_outside, inside, outside, x, sizes, grad, masks, C, T, V, rows_per_mask,
    x_b, x_c, x_t, x_v, g_share, g_b, g_c, g_t, g_v,
    SHARED: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradient of BT frames of a mask over one share of its rows; of a mask per channel, which is not SHARED, of BC
    channels."""
    of_mask, last = tl.program_id(0).to(tl.int64), tl.program_id(2)
    t = tl.program_id(1) * BT + tl.arange(0, BT)
    acc = tl.zeros((BC, BT, BV), tl.float32)
    for row in range(last if SHARED else 0, rows_per_mask, tl.num_programs(2)):
        b = of_mask * rows_per_mask + row
        for c0 in range(0 if SHARED else last * BC, C if SHARED else last * BC + 1, BC):
            c = c0 + tl.arange(0, BC)
            pull_in, pull_out = _pulls(grad_inside, grad_outside, sizes, b, of_mask, masks, c, C, T, V, SHARED)
            at, here = _cells(x, b, c, t, C, T, V, x_b, x_c, x_t, x_v, BV)
            acc += tl.load(at, mask=here, other=0.0).to(tl.float32) * (pull_in - pull_out)[:, None, None]
            if sizes is not None:
                mean_in = tl.load(inside + b * C + c, mask=c < C, other=0.0).to(tl.float32)
                mean_out = tl.load(outside + b * C + c, mask=c < C, other=0.0).to(tl.float32)
                acc += (pull_out * mean_out - pull_in * mean_in)[:, None, None]
    if SHARED:
        v = tl.arange(0, BV)
        at = grad + last.to(tl.int64) * g_share + of_mask * g_b + t.to(tl.int64)[:, None] * g_t + v[None, :] * g_v
        tl.store(at, tl.sum(acc, 0), mask=(t < T)[:, None] & (v < V)[None, :])
    else:
        at, here = _cells(grad, of_mask, last * BC + tl.arange(0, BC), t, C, T, V, g_b, g_c, g_t, g_v, BV)
        tl.store(at, acc, mask=here)


def _mask_strides(mask: Tensor) -> tuple[int, int, int, int]:
    """Strides along rows, channels, frames and joints."""
    row = mask.stride(0) if mask.dim() > 2 else 0
    channel = mask.stride(1) if mask.dim() == 4 else 0
    return row, channel, mask.stride(-2), mask.stride(-1)


def _rows_per_mask(B: int, mask: Tensor) -> int:
    return B // max(mask.shape[0], 1) if mask.dim() > 2 else B


def _case(channels_last: bool) -> str:
    return "channels_last" if channels_last else "default"


def mask_pool(x: Tensor, mask: Tensor, by_size: bool, outputs: list[Tensor]) -> None:
    x, channels_last = kernel_map(x)
    B, C, T, V = x.shape
    sizes = tile("mask_pool", x.device, _case(channels_last))
    launch(
        _forward, (B, triton.cdiv(C, sizes["BC"])), x.device, x, mask, *outputs, C, T, V, _rows_per_mask(B, mask),
        *x.stride(), *_mask_strides(mask), BY_SIZE=by_size, BV=triton.next_power_of_2(V), **sizes,
    )  # fmt: skip


def _mask_sizes(mask: Tensor, tile_of: Tile, by_size: bool) -> Tensor | None:
    """(2, masks, channels of the mask); None where sums are divided by the number of cells instead."""
    if by_size:
        return None
    T, V = mask.shape[-2:]
    masks = mask.shape[0] if mask.dim() > 2 else 1
    channels = mask.shape[1] if mask.dim() == 4 else 1
    sizes = mask.new_empty(2, masks, channels, dtype=torch.float32)
    launch(
        _sizes, (masks, triton.cdiv(channels, tile_of["BC"])), mask.device, mask, sizes, masks, channels, T, V,
        *_mask_strides(mask), BV=triton.next_power_of_2(V), **tile_of,
    )  # fmt: skip
    return sizes


def mask_pool_backward(
    inside: Tensor, outside: Tensor, mask: Tensor, by_size: bool, channels_last: bool, outputs: list[Tensor]
) -> None:
    (grad,) = outputs
    B, C, T, V = grad.shape
    tile_of = tile("mask_pool_backward", grad.device, _case(channels_last))
    sizes = _mask_sizes(mask, tile_of, by_size)
    launch(
        _backward, (B, triton.cdiv(C, tile_of["BC"])), grad.device, inside.contiguous(), outside.contiguous(), mask,
        sizes, grad, mask.shape[0] if mask.dim() > 2 else 1, C, T, V, _rows_per_mask(B, mask), *_mask_strides(mask),
        *grad.stride(), SHARED=mask.dim() != 4, BV=triton.next_power_of_2(V), **tile_of,
    )  # fmt: skip


def mask_pool_backward_mask(
    grad_inside: Tensor,
    grad_outside: Tensor,
    inside: Tensor,
    outside: Tensor,
    x: Tensor,
    mask: Tensor,
    by_size: bool,
    outputs: list[Tensor],
) -> None:
    (out,) = outputs
    x, channels_last = kernel_map(x)
    B, C, T, V = x.shape
    tile_of = tile("mask_pool_backward_mask", x.device, _case(channels_last))
    shared, per_mask = mask.dim() != 4, _rows_per_mask(B, mask)
    masks, blocks = (mask.shape[0] if mask.dim() > 2 else 1), triton.cdiv(T, tile_of["BT"])
    last = splits(x.device, per_mask, masks * blocks) if shared else triton.cdiv(C, tile_of["BC"])
    # A mask of several channels or rows gathers from all of them: in shares, added up in order.
    grad = x.new_empty(last, masks, 1, T, V, dtype=torch.float32) if shared else out[None]
    launch(
        _backward_mask, (masks, blocks, last), x.device, grad_inside.contiguous(), grad_outside.contiguous(), inside,
        outside, x, _mask_sizes(mask, tile_of, by_size), grad, masks, C, T, V, per_mask, *x.stride(), *grad.stride(),
        SHARED=shared, BV=triton.next_power_of_2(V), **tile_of,
    )  # fmt: skip
    if shared:
        out.copy_(grad.sum(0).view_as(out))
