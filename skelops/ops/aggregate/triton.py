"""aggregate in Triton: matrix products where channels share the adjacency, sums on vectors where each has its own.

A kernel of products sees rows (outer, inner): channels and frames in either order, channels alone where every frame has
its own adjacency, channels and joints where the adjacency relates frames; only strides tell these apart. Blocks: BR
rows, BV sources, BW targets. A kernel for an adjacency per channel holds that of BC channels in registers, BS sources
of all subsets that are summed. The gradient of an adjacency that samples share has two stages of fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._layout import is_channels_last, kernel_map
from skelops._triton import dot_precision, launch, launch_by_sample, splits, tile


@triton.jit
def _rows(x, row, column, rows, columns, INNER, stride_outer, stride_inner, stride_column):
    """Rows (BR) and columns of a map, zeros outside."""
    outer, inner = (row // INNER).to(tl.int64), (row % INNER).to(tl.int64)
    at = (outer * stride_outer + inner * stride_inner)[:, None] + column.to(tl.int64)[None, :] * stride_column
    return tl.load(x + at, mask=(row < rows)[:, None] & (column < columns)[None, :], other=0.0)


@triton.jit
def _multiply(
    x, adjacency, y, rows, INNER, V, W, F, K, summed,
    x_b, x_k, x_f, x_o, x_i, x_v, a_b, a_k, a_f, a_v, a_w, y_b, y_k, y_f, y_o, y_i, y_w,
    BR: tl.constexpr, BV: tl.constexpr, BW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid, the last fastest: samples, F frames, blocks of rows, blocks of targets, K subsets.

    One axis, for samples and frames may be more than the others take. `summed` subsets go into one.
    """
    blocks, row_blocks = tl.cdiv(W, BW), tl.cdiv(rows, BR)
    first, block = (tl.program_id(0) % K).to(tl.int64), tl.program_id(0) // K
    w, item = block % blocks * BW + tl.arange(0, BW), block // blocks
    row, item = item % row_blocks * BR + tl.arange(0, BR), item // row_blocks
    b, f = (item // F).to(tl.int64), (item % F).to(tl.int64)
    acc = tl.zeros((BR, BW), tl.float32)
    for j in range(summed):
        k = first + j
        for v0 in range(0, V, BV):
            v = v0 + tl.arange(0, BV)
            features = _rows(x + b * x_b + k * x_k + f * x_f, row, v, rows, V, INNER, x_o, x_i, x_v)
            at = adjacency + b * a_b + k * a_k + f * a_f
            at += v.to(tl.int64)[:, None] * a_v + w.to(tl.int64)[None, :] * a_w
            edges = tl.load(at, mask=(v < V)[:, None] & (w < W)[None, :], other=0.0)
            acc = tl.dot(features, edges, acc, input_precision=PRECISION)
    outer, inner = (row // INNER).to(tl.int64), (row % INNER).to(tl.int64)
    to = y + b * y_b + first * y_k + f * y_f
    to += (outer * y_o + inner * y_i)[:, None] + w.to(tl.int64)[None, :] * y_w
    tl.store(to, acc, mask=(row < rows)[:, None] & (w < W)[None, :])


@triton.jit
def _products(
    grad, x, edges, rows, INNER, V, W, F, K, samples,
    g_b, g_k, g_f, g_o, g_i, g_w, x_b, x_k, x_f, x_o, x_i, x_v,
    BR: tl.constexpr, BV: tl.constexpr, BW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """edges (shares, groups, K, V, W): sums over one share of the blocks of rows of the samples of a group.

    Grid: groups, blocks of sources, blocks of targets, K subsets (on one axis, the last fastest), and shares. A group
    has `samples` samples and one of F frames.
    """
    blocks, row_blocks = tl.cdiv(W, BW), tl.cdiv(rows, BR)
    k, block = (tl.program_id(0) % K).to(tl.int64), tl.program_id(0) // K
    w, block = block % blocks * BW + tl.arange(0, BW), block // blocks
    v, place = block % tl.cdiv(V, BV) * BV + tl.arange(0, BV), block // tl.cdiv(V, BV)
    group, f = place // F, (place % F).to(tl.int64)
    groups = tl.num_programs(0) // (K * blocks * tl.cdiv(V, BV))
    acc = tl.zeros((BV, BW), tl.float32)
    for item in range(tl.program_id(1), samples * row_blocks, tl.num_programs(1)):
        b = (group * samples + item // row_blocks).to(tl.int64)
        row = item % row_blocks * BR + tl.arange(0, BR)
        features = _rows(x + b * x_b + k * x_k + f * x_f, row, v, rows, V, INNER, x_o, x_i, x_v)
        targets = _rows(grad + b * g_b + k * g_k + f * g_f, row, w, rows, W, INNER, g_o, g_i, g_w)
        acc = tl.dot(tl.trans(features), targets, acc, input_precision=PRECISION)
    part = (tl.program_id(1) * groups + place).to(tl.int64) * K + k
    at = (part * V + v[:, None]) * W + w[None, :]
    tl.store(edges + at, acc, mask=(v < V)[:, None] & (w < W)[None, :])


@triton.jit
def _apply(
    x, adjacency, y, C, T, V, W, K, summed,
    x_b, x_k, x_c, x_t, x_v, a_b, a_k, a_c, a_t, a_v, a_w, y_b, y_k, y_c, y_t, y_w,
    BC: tl.constexpr, BS: tl.constexpr, BW: tl.constexpr, PER_FRAME: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of channels, blocks of targets of K subsets, samples; `summed` subsets go into one."""
    b, first = tl.program_id(2).to(tl.int64) + FIRST, tl.program_id(1) % K
    c, s = tl.program_id(0) * BC + tl.arange(0, BC), tl.arange(0, BS)
    w = tl.program_id(1) // K * BW + tl.arange(0, BW)
    k, v = (first + s // V).to(tl.int64), (s % V).to(tl.int64)
    source, channel = s < summed * V, c < C
    c_far, w_far = c.to(tl.int64), w.to(tl.int64)
    of_x = x + b * x_b + c_far[:, None] * x_c + (k * x_k + v * x_v)[None, :]
    of_edges = adjacency + b * a_b + c_far[:, None, None] * a_c
    of_edges += (k * a_k + v * a_v)[None, :, None] + w_far[None, None, :] * a_w
    there = channel[:, None, None] & source[None, :, None] & (w < W)[None, None, :]
    to = y + b * y_b + first.to(tl.int64) * y_k + c_far[:, None] * y_c + w_far[None, :] * y_w
    edges = tl.load(of_edges, mask=there, other=0.0).to(tl.float32)
    for frame in range(T):
        t = tl.cast(frame, tl.int64)
        if PER_FRAME:
            edges = tl.load(of_edges + t * a_t, mask=there, other=0.0).to(tl.float32)
        features = tl.load(of_x + t * x_t, mask=channel[:, None] & source[None, :], other=0.0).to(tl.float32)
        value = tl.sum(features[:, :, None] * edges, 1)
        tl.store(to + t * y_t, value, mask=channel[:, None] & (w < W)[None, :])


@triton.jit
def _outer_products(
    grad, x, edges, C, T, V, W, K, g_b, g_k, g_c, g_t, g_w, x_b, x_k, x_c, x_t, x_v, e_b, e_k, e_c, e_t,
    BC: tl.constexpr, BS: tl.constexpr, BW: tl.constexpr, PER_FRAME: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """The gradient of an adjacency per channel (V, W) dense. Grid: as _apply."""
    b, k = tl.program_id(2).to(tl.int64) + FIRST, (tl.program_id(1) % K).to(tl.int64)
    c, v = tl.program_id(0) * BC + tl.arange(0, BC), tl.arange(0, BS)
    w = tl.program_id(1) // K * BW + tl.arange(0, BW)
    c_far, v_far, w_far = c.to(tl.int64), v.to(tl.int64), w.to(tl.int64)
    of_x = x + b * x_b + k * x_k + c_far[:, None] * x_c + v_far[None, :] * x_v
    of_grad = grad + b * g_b + k * g_k + c_far[:, None] * g_c + w_far[None, :] * g_w
    to = edges + b * e_b + k * e_k + c_far[:, None, None] * e_c + v_far[None, :, None] * W + w_far[None, None, :]
    sources, targets = (c < C)[:, None] & (v < V)[None, :], (c < C)[:, None] & (w < W)[None, :]
    there = sources[:, :, None] & targets[:, None, :]
    total = tl.zeros((BC, BS, BW), tl.float32)
    for frame in range(T):
        t = tl.cast(frame, tl.int64)
        features = tl.load(of_x + t * x_t, mask=sources, other=0.0).to(tl.float32)
        gradient = tl.load(of_grad + t * g_t, mask=targets, other=0.0).to(tl.float32)
        product = features[:, :, None] * gradient[:, None, :]
        if PER_FRAME:
            tl.store(to + t * e_t, product, mask=there)
        else:
            total += product
    if not PER_FRAME:
        tl.store(to, total, mask=there)


class _View(NamedTuple):
    """A map as the kernels of products see it: strides of sample, subset, frame, both axes of rows, and joint."""

    sample: int
    subset: int
    frame: int
    outer: int
    inner: int
    joint: int


def _view(x: Tensor, subsets: int, channels_first: bool, per_frame: bool, frames: bool) -> tuple[_View, int, int]:
    """The map of so many subsets (0: it has no such axis), the number of its rows and that of the inner axis."""
    of_sample, of_channel, of_frame, of_joint = x.stride()
    C, other = x.shape[1] // max(subsets, 1), x.shape[3 if frames else 2]
    of_subset = C * of_channel if subsets else 0
    if frames:
        of_frame, of_joint = of_joint, of_frame
    if per_frame:
        return _View(of_sample, of_subset, of_frame, 0, of_channel, of_joint), C, C
    if channels_first:
        return _View(of_sample, of_subset, 0, of_channel, of_frame, of_joint), C * other, other
    return _View(of_sample, of_subset, 0, of_frame, of_channel, of_joint), C * other, C


def _edge_strides(adjacency: Tensor) -> list[int]:
    """Strides of the adjacency; 0 along the axes that it lacks."""
    return [stride if size > 1 else 0 for stride, size in zip(adjacency.stride(), adjacency.shape, strict=True)]


def _case(x: Tensor) -> str:
    return "float32" if x.dtype == torch.float32 else "16-bit"


def _tile_blocks(kernel: str, x: Tensor, per_frame: int, channels: int, sources: int, targets: int) -> dict[str, int]:
    """The tile of a kernel for an adjacency per channel: BE elements of each thread are shared out."""
    sizes = dict(tile(kernel, x.device, "per frame" if per_frame > 1 else "default"))
    elements, BS = sizes.pop("BE") * 32 * sizes["num_warps"], triton.next_power_of_2(sources)
    BW = max(1, min(32, triton.next_power_of_2(targets), elements // BS))
    BC = max(1, min(elements // (BS * BW), triton.next_power_of_2(channels)))
    return {"BC": BC, "BS": BS, "BW": BW, **sizes}


def aggregate(
    x: Tensor, adjacency: Tensor, per_subset: bool, sum_subsets: bool, frames: bool, outputs: list[Tensor]
) -> None:
    x, _ = kernel_map(x)
    (y,) = outputs
    _, K, per_channel, per_frame, V, W = adjacency.shape
    B, C = x.shape[0], x.shape[1] // (K if per_subset else 1)
    summed, K_out = (K, 1) if sum_subsets else (1, K)
    a_b, a_k, a_c, a_t, a_v, a_w = _edge_strides(adjacency)
    if per_channel > 1:
        T = x.shape[2]
        sizes = _tile_blocks("aggregate_per_channel", x, per_frame, C, summed * V, W)
        (x_b, x_c, x_t, x_v), (y_b, y_c, y_t, y_w) = x.stride(), y.stride()
        strides = (x_b, C * x_c if per_subset else 0, x_c, x_t, x_v, a_b, a_k, a_c, a_t, a_v, a_w)
        strides_y = (y_b, 0 if sum_subsets else C * y_c, y_c, y_t, y_w)
        launch_by_sample(
            _apply, (triton.cdiv(C, sizes["BC"]), triton.cdiv(W, sizes["BW"]) * K_out), B, x.device,
            x, adjacency, y, C, T, V, W, K_out, summed, *strides, *strides_y, PER_FRAME=per_frame > 1, **sizes,
        )  # fmt: skip
        return
    form = (not is_channels_last(x), per_frame > 1, frames)
    of_x, rows, inner = _view(x, K if per_subset else 0, *form)
    of_y, _, _ = _view(y, 0 if sum_subsets else K, *form)
    sizes = tile("aggregate", x.device, _case(x))
    programs = B * per_frame * triton.cdiv(rows, sizes["BR"]) * triton.cdiv(W, sizes["BW"]) * K_out
    launch(
        _multiply, (programs,), x.device, x, adjacency, y, rows, inner, V, W, per_frame, K_out, summed,
        *of_x, a_b, a_k, a_t, a_v, a_w, *of_y, PRECISION=dot_precision(x.dtype), **sizes,
    )  # fmt: skip


def aggregate_backward_adjacency(
    grad: Tensor,
    x: Tensor,
    adjacency: Tensor,
    per_subset: bool,
    sum_subsets: bool,
    frames: bool,
    outputs: list[Tensor],
) -> None:
    (grad, _), (x, channels_last) = kernel_map(grad), kernel_map(x)
    (edges,) = outputs
    samples, K, per_channel, per_frame, V, W = adjacency.shape
    B, C = x.shape[0], x.shape[1] // (K if per_subset else 1)
    if per_channel > 1:
        T = x.shape[2]
        sizes = _tile_blocks("aggregate_per_channel_adjacency", x, per_frame, C, V, W)
        blocks = triton.cdiv(C, sizes["BC"]), triton.cdiv(W, sizes["BW"]) * K
        (x_b, x_c, x_t, x_v), (g_b, g_c, g_t, g_w) = x.stride(), grad.stride()
        strides = (g_b, 0 if sum_subsets else C * g_c, g_c, g_t, g_w, x_b, C * x_c if per_subset else 0, x_c, x_t, x_v)
        launch_by_sample(
            _outer_products, blocks, B, x.device, grad, x, edges, C, T, V, W, K, *strides, *edges.stride()[:4],
            PER_FRAME=per_frame > 1, **sizes,
        )  # fmt: skip
        return
    form = (not channels_last, per_frame > 1, frames)
    of_x, rows, inner = _view(x, K if per_subset else 0, *form)
    of_grad, _, _ = _view(grad, 0 if sum_subsets else K, *form)
    sizes = tile("aggregate_adjacency", x.device, _case(x))
    blocks = triton.cdiv(V, sizes["BV"]) * triton.cdiv(W, sizes["BW"]) * K
    groups, of_group = (B, 1) if samples == B else (1, B)
    groups *= per_frame
    shares = splits(x.device, of_group * triton.cdiv(rows, sizes["BR"]), blocks * groups)
    sums = x.new_empty(shares, groups, K, V, W, dtype=torch.float32)
    launch(
        _products, (groups * blocks, shares), x.device, grad, x, sums, rows, inner, V, W, per_frame, K, of_group,
        *of_grad, *of_x, PRECISION=dot_precision(x.dtype), **sizes,
    )  # fmt: skip
    # (groups of a sample, frame) and then subset: the axes of the adjacency in another order.
    total = sums.sum(0).view(-1, per_frame, K, V, W).transpose(1, 2)
    edges.copy_(total.reshape(edges.shape))
