"""temporal_conv in Triton: an implicit matrix product over taps and channels; nothing is unfolded.

Rows are (t, v) of one sample, so that no joint count needs padding: a tap reads rows some whole frames away, which are
zero outside the map. Blocks: BR rows, BC input and BO output channels of a group. The normalisation before the
convolution and the gradient of the channel sums are applied while loading. Reductions have two stages of fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._layout import kernel_map
from skelops._triton import Tile, dot_precision, launch, launch_by_sample, splits, tile


@triton.jit
def _part(x, rows, here, c, C, x_c, x_v):
    """Rows of a map (BR, BC), zeros outside."""
    at = rows.to(tl.int64)[:, None] * x_v + c.to(tl.int64)[None, :] * x_c
    return tl.load(x + at, mask=here[:, None] & (c < C)[None, :], other=0.0)


@triton.jit
def _activated(x, scale, shift, rows, here, c, C, x_c, x_v):
    """Rows of relu(scale * x + shift), zeros outside; of x where there is no scale."""
    value = _part(x, rows, here, c, C, x_c, x_v)
    if scale is not None:
        z = value.to(tl.float32) * tl.load(scale + c, mask=c < C, other=0.0)[None, :]
        z += tl.load(shift + c, mask=c < C, other=0.0)[None, :]
        value = tl.where((z < 0) | ~here[:, None], 0.0, z).to(value.dtype)
    return value


@triton.jit
def _gradient(grad, y, offset, slope, rows, here, o, O, g_c, g_v):
    """Rows of the gradient of y with that of its channel sums, zeros outside."""
    value = _part(grad, rows, here, o, O, g_c, g_v)
    if offset is not None:
        total = value.to(tl.float32) + tl.load(offset + o, mask=o < O, other=0.0)[None, :]
        if y is not None:
            slopes = tl.load(slope + o, mask=o < O, other=0.0)[None, :]
            total += slopes * _part(y, rows, here, o, O, g_c, g_v).to(tl.float32)
        value = tl.where(here[:, None], total, 0.0).to(value.dtype)
    return value


@triton.jit
def _weights(weight, i, c, C, o, O, w_c, w_o, w_k):
    """One tap of the weight (BC, BO)."""
    at = i * w_k + c[:, None] * w_c + o[None, :] * w_o
    return tl.load(weight + at, mask=(c < C)[:, None] & (o < O)[None, :], other=0.0)


@triton.jit
def _put_sums(sums, first, second, b, c, group, C):
    """Two sums (BC,) of this program, into (blocks of rows, 2, channels)."""
    block = b * tl.num_programs(0) + tl.program_id(0)
    channels = tl.num_programs(1) // tl.cdiv(C, first.shape[0]) * C
    at = block * 2 * channels + group * C + c
    tl.store(sums + at, first, mask=c < C)
    tl.store(sums + at + channels, second, mask=c < C)


@triton.jit
def _temporal_conv(
    x, weight, bias, scale, shift, y, sums, C, O, V, rows, in_rows, taps, stride, dilation,
    x_b, x_c, x_v, w_o, w_c, w_k, y_b, y_c, y_v,
    BR: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(2).to(tl.int64) + FIRST
    o_blocks = tl.cdiv(O, BO)
    group, o = tl.program_id(1) // o_blocks, tl.program_id(1) % o_blocks * BO + tl.arange(0, BO)
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    first = r + r // V * ((stride - 1) * V) - taps // 2 * dilation * V
    x += b * x_b + group.to(tl.int64) * C * x_c
    weight += group * O * w_o
    if scale is not None:
        scale += group * C
        shift += group * C
    acc = tl.zeros((BR, BO), tl.float32)
    c_blocks = tl.cdiv(C, BC)
    for j in range(taps * c_blocks):
        i, c = j // c_blocks, j % c_blocks * BC + tl.arange(0, BC)
        at = first + i * dilation * V
        a = _activated(x, scale, shift, at, (r < rows) & (at >= 0) & (at < in_rows), c, C, x_c, x_v)
        acc = tl.dot(a, _weights(weight, i, c, C, o, O, w_c, w_o, w_k), acc, input_precision=PRECISION)
    if bias is not None:
        acc += tl.load(bias + group * O + o, mask=o < O, other=0.0).to(tl.float32)[None, :]
    at = b * y_b + r.to(tl.int64)[:, None] * y_v + (group * O + o).to(tl.int64)[None, :] * y_c
    tl.store(y + at, acc, mask=(r < rows)[:, None] & (o < O)[None, :])
    if sums is not None:
        kept = tl.where((r < rows)[:, None], acc, 0.0)
        _put_sums(sums, tl.sum(kept, 0), tl.sum(kept * kept, 0), b, o, group, O)


@triton.jit
def _input_gradient(
    grad, y, offset, slope, weight, x, scale, shift, out, sums, C, O, V, rows, out_rows, taps, first, step, stride,
    g_b, g_c, g_v, w_o, w_c, w_k, x_b, x_c, x_v, i_b, i_c, i_v,
    BR: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of every stride-th frame of x, which the given taps read; frame m reads frames m + first + i * step."""
    b = tl.program_id(2).to(tl.int64) + FIRST
    c_blocks = tl.cdiv(C, BC)
    group, c = tl.program_id(1) // c_blocks, tl.program_id(1) % c_blocks * BC + tl.arange(0, BC)
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    grad += b * g_b + group.to(tl.int64) * O * g_c
    weight += group * O * w_o
    if y is not None:
        y += b * g_b + group.to(tl.int64) * O * g_c
    if offset is not None:
        offset += group * O
        slope += group * O
    acc = tl.zeros((BR, BC), tl.float32)
    o_blocks = tl.cdiv(O, BO)
    for j in range(taps * o_blocks):
        i, o = j // o_blocks, j % o_blocks * BO + tl.arange(0, BO)
        at = r + (first + i * step) * V
        here = (r < rows) & (at >= 0) & (at < out_rows)
        g = _gradient(grad, y, offset, slope, at, here, o, O, g_c, g_v)
        acc = tl.dot(g, _weights(weight, i, o, O, c, C, w_o, w_c, w_k), acc, input_precision=PRECISION)
    row = r + r // V * ((stride - 1) * V)
    if scale is not None:
        scales = tl.load(scale + group * C + c, mask=c < C, other=0.0)[None, :]
        value = _part(x + b * x_b + group.to(tl.int64) * C * x_c, row, r < rows, c, C, x_c, x_v).to(tl.float32)
        z = value * scales + tl.load(shift + group * C + c, mask=c < C, other=0.0)[None, :]
        acc = tl.where(z <= 0, 0.0, acc)
        if sums is not None:
            kept = tl.where((r < rows)[:, None], acc, 0.0)
            _put_sums(sums, tl.sum(kept * value, 0), tl.sum(kept, 0), b, c, group, C)
        acc *= scales
    if out is not None:
        at = b * i_b + row.to(tl.int64)[:, None] * i_v + (group * C + c).to(tl.int64)[None, :] * i_c
        tl.store(out + at, acc, mask=(r < rows)[:, None] & (c < C)[None, :])


@triton.jit
def _weight_gradient(
    grad, y, offset, slope, x, scale, shift, weights, biases, C, O, V, rows, in_rows, taps, stride, dilation, items,
    g_b, g_c, g_v, x_b, x_c, x_v,
    BR: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one tap (and of the bias) over one share of the items, an item being BR rows of one sample."""
    share, tap = tl.program_id(0), tl.program_id(1)
    c_blocks, o_blocks, r_blocks = tl.cdiv(C, BC), tl.cdiv(O, BO), tl.cdiv(rows, BR)
    group, block = tl.program_id(2) // (o_blocks * c_blocks), tl.program_id(2) % (o_blocks * c_blocks)
    o, c = block // c_blocks * BO + tl.arange(0, BO), block % c_blocks * BC + tl.arange(0, BC)
    grad += group.to(tl.int64) * O * g_c
    x += group.to(tl.int64) * C * x_c
    if y is not None:
        y += group.to(tl.int64) * O * g_c
    if offset is not None:
        offset += group * O
        slope += group * O
    if scale is not None:
        scale += group * C
        shift += group * C
    acc = tl.zeros((BO, BC), tl.float32)
    of_bias = tl.zeros((BO,), tl.float32)
    for item in range(share, items, tl.num_programs(0)):
        b, r = (item // r_blocks).to(tl.int64), item % r_blocks * BR + tl.arange(0, BR)
        of_y = y
        if y is not None:
            of_y = y + b * g_b
        g = _gradient(grad + b * g_b, of_y, offset, slope, r, r < rows, o, O, g_c, g_v)
        at = r + r // V * ((stride - 1) * V) + (tap - taps // 2) * dilation * V
        a = _activated(x + b * x_b, scale, shift, at, (r < rows) & (at >= 0) & (at < in_rows), c, C, x_c, x_v)
        acc = tl.dot(tl.trans(g), a, acc, input_precision=PRECISION)
        if biases is not None:
            of_bias += tl.sum(g.to(tl.float32), 0)
    channels = tl.num_programs(2) // (o_blocks * c_blocks) * O
    row = (share * taps + tap).to(tl.int64) * channels + group * O + o
    tl.store(weights + row[:, None] * C + c[None, :], acc, mask=(o < O)[:, None] & (c < C)[None, :])
    if biases is not None:
        at = share.to(tl.int64) * channels + group * O + o
        tl.store(biases + at, of_bias, mask=(o < O) & (tap == 0) & (block % c_blocks == 0))


def _setting(kernel: str, x: Tensor, channels: int) -> tuple[Tile, str]:
    """The tile, and the precision of products; channels: of the blocks that a program writes."""
    case = ("float32" if x.dtype == torch.float32 else "16-bit") + (" narrow" if channels <= 32 else "")
    return tile(kernel, x.device, case), dot_precision(x.dtype)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of samples, channels and rows; the frames of a map in either format are V rows apart."""
    return x.stride(0), x.stride(1), x.stride(3)


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def temporal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    stride: int,
    dilation: int,
    groups: int,
    stats: bool,
    outputs: list[Tensor],
) -> None:
    x, _ = kernel_map(x, slices=True)
    y, *totals = outputs
    B, C, T, V = x.shape
    O, _, k = weight.shape
    rows = y.shape[2] * V
    sizes, precision = _setting("temporal_conv", x, O // groups)
    blocks = triton.cdiv(rows, sizes["BR"]), groups * triton.cdiv(O // groups, sizes["BO"])
    sums = x.new_empty(B * blocks[0], 2, O, dtype=torch.float32) if stats else None
    launch_by_sample(
        _temporal_conv, blocks, B, x.device, x, weight, _dense(bias), _dense(scale), _dense(shift), y, sums,
        C // groups, O // groups, V, rows, T * V, k, stride, dilation, *_strides(x), *weight.stride(), *_strides(y),
        PRECISION=precision, **sizes,
    )  # fmt: skip
    if sums is not None:
        for out, total in zip(totals, sums.sum(0, dtype=torch.float64), strict=True):
            out.copy_(total)


def temporal_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    y: Tensor | None,
    grad_sum: Tensor | None,
    grad_square_sum: Tensor | None,
    stride: int,
    dilation: int,
    groups: int,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
    needs_affine: bool,
    outputs: list[Tensor],
) -> None:
    x, _ = kernel_map(x, slices=True)
    if y is not None:
        y, _ = kernel_map(y, slices=True)
        if grad.stride() != y.stride():
            grad = torch.empty_strided(y.shape, y.stride(), dtype=grad.dtype, device=grad.device).copy_(grad)
    else:
        grad, _ = kernel_map(grad, slices=True)
    offset = slope = None
    if grad_sum is not None or grad_square_sum is not None:
        zeros = x.new_zeros(weight.shape[0], dtype=torch.float32)
        offset = zeros if grad_sum is None else grad_sum.float().contiguous()
        slope = zeros if grad_square_sum is None else (2 * grad_square_sum).float()
    gradient, affine = (grad, y, offset, slope), (_dense(scale), _dense(shift))
    of_x, of_weight, of_bias, *of_affine = outputs
    if needs_x or needs_affine:
        found = of_x if needs_x else None
        _reduce_input(gradient, x, weight, affine, found, of_affine if needs_affine else [], stride, dilation, groups)
    if needs_weight or needs_bias:
        weights, biases = _reduce_weight(gradient, x, weight, affine, needs_bias, stride, dilation, groups)
        if needs_weight:
            of_weight.copy_(weights)
        if biases is not None:
            of_bias.copy_(biases)


def _reduce_input(
    gradient: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    x: Tensor,
    weight: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    out: Tensor | None,
    of_affine: list[Tensor],
    stride: int,
    dilation: int,
    groups: int,
) -> None:
    """Phase by phase: frame m * stride + q of x is read by the taps whose distance is q modulo the stride."""
    B, C, T, V = x.shape
    O, _, k = weight.shape
    grad = gradient[0]
    sizes, precision = _setting("temporal_conv_input", x, C // groups)
    totals = x.new_zeros(2, C, dtype=torch.float64)
    for phase in range(min(stride, T)):
        distances = [(i, (i - k // 2) * dilation) for i in range(k)]
        taps = [(i, (d - phase) // stride) for i, d in distances if (d - phase) % stride == 0]
        of_phase = None if out is None else out[:, :, phase::stride]
        if not taps:
            if of_phase is not None:
                of_phase.zero_()
            continue
        (first, e), (second, e_second) = taps[0], taps[min(1, len(taps) - 1)]
        some = weight[:, :, first :: max(1, second - first)][:, :, : len(taps)]
        values = x[:, :, phase::stride]
        rows = values.shape[2] * V
        blocks = triton.cdiv(rows, sizes["BR"]), groups * triton.cdiv(C // groups, sizes["BC"])
        sums = x.new_empty(B * blocks[0], 2, C, dtype=torch.float32) if of_affine else None
        launch_by_sample(
            _input_gradient, blocks, B, x.device, *gradient, some, values, *affine, of_phase, sums,
            C // groups, O // groups, V, rows, grad.shape[2] * V, len(taps), -e, e - e_second, stride,
            *_strides(grad), *some.stride(), *_strides(x), *((0, 0, 0) if out is None else _strides(out)),
            PRECISION=precision, **sizes,
        )  # fmt: skip
        if sums is not None:
            totals += sums.sum(0, dtype=torch.float64)
    for result, total in zip(of_affine, totals, strict=False):
        result.copy_(total)


def _reduce_weight(
    gradient: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    x: Tensor,
    weight: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    with_bias: bool,
    stride: int,
    dilation: int,
    groups: int,
) -> tuple[Tensor, Tensor | None]:
    B, _, T, V = x.shape
    O, channels, k = weight.shape
    grad = gradient[0]
    rows = grad.shape[2] * V
    sizes, precision = _setting("temporal_conv_weight", x, max(O // groups, channels))
    items = B * triton.cdiv(rows, sizes["BR"])
    blocks = groups * triton.cdiv(O // groups, sizes["BO"]) * triton.cdiv(channels, sizes["BC"])
    shares = splits(x.device, items, k * blocks)
    weights = x.new_empty(shares, k, O, channels, dtype=torch.float32)
    biases = x.new_empty(shares, O, dtype=torch.float32) if with_bias else None
    launch(
        _weight_gradient, (shares, k, blocks), x.device, *gradient, x, *affine, weights, biases,
        channels, O // groups, V, rows, T * V, k, stride, dilation, items, *_strides(grad), *_strides(x),
        PRECISION=precision, **sizes,
    )  # fmt: skip
    return weights.sum(0).permute(1, 2, 0), None if biases is None else biases.sum(0)
