"""graph_conv in Triton: aggregate over joints, then project, in one kernel; the map between is never stored.

Blocks: BT frames, BC input and BO output channels, BV joints (V rounded up to a power of two, in registers only). Every
kernel takes strides, so both memory formats run natively. Reductions over the batch have two stages of fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._layout import kernel_map
from skelops._triton import Tile, dot_precision, launch, launch_by_sample, splits, tile


@triton.jit
def _rows(x, b, t0, c0, T, V, C, stride_b, stride_c, stride_t, stride_v, BT: tl.constexpr, BC: tl.constexpr, BV: tl.constexpr):  # fmt: skip  # noqa: E501
    """Part of a map as (BT * BC, BV), zeros outside."""
    i = tl.arange(0, BT * BC)
    t, c, v = t0 + i // BC, c0 + i % BC, tl.arange(0, BV)
    rows = c.to(tl.int64) * stride_c + t.to(tl.int64) * stride_t
    here = ((t < T) & (c < C))[:, None] & (v < V)[None, :]
    return tl.load(x + b * stride_b + rows[:, None] + v[None, :] * stride_v, mask=here, other=0.0)


@triton.jit
def _joints(x, b, t0, c0, T, V, C, stride_b, stride_c, stride_t, stride_v, BT: tl.constexpr, BC: tl.constexpr, BV: tl.constexpr):  # fmt: skip  # noqa: E501
    """Part of a map as (BT * BV, BC), zeros outside."""
    i = tl.arange(0, BT * BV)
    t, v, c = t0 + i // BV, i % BV, c0 + tl.arange(0, BC)
    rows = t.to(tl.int64) * stride_t + v * stride_v
    here = ((t < T) & (v < V))[:, None] & (c < C)[None, :]
    return tl.load(x + b * stride_b + rows[:, None] + c.to(tl.int64)[None, :] * stride_c, mask=here, other=0.0)


@triton.jit
def _gradient_rows(grad, y, grad_sum, grad_square_sum, b, t0, c0, T, V, C, g_b, g_c, g_t, g_v, y_b, y_c, y_t, y_v, BT: tl.constexpr, BC: tl.constexpr, BV: tl.constexpr):  # fmt: skip  # noqa: E501
    """`_rows` of the gradient of y, with what those of its sums add where they are given."""
    g = _rows(grad, b, t0, c0, T, V, C, g_b, g_c, g_t, g_v, BT, BC, BV)
    if grad_sum is not None:
        i = tl.arange(0, BT * BC)
        t, c, v = t0 + i // BC, c0 + i % BC, tl.arange(0, BV)
        total = g.to(tl.float32) + tl.load(grad_sum + c, mask=c < C, other=0.0).to(tl.float32)[:, None]
        if y is not None:
            slope = 2 * tl.load(grad_square_sum + c, mask=c < C, other=0.0).to(tl.float32)
            total += slope[:, None] * _rows(y, b, t0, c0, T, V, C, y_b, y_c, y_t, y_v, BT, BC, BV).to(tl.float32)
        g = tl.where(((t < T) & (c < C))[:, None] & (v < V)[None, :], total, 0.0).to(g.dtype)
    return g


@triton.jit
def _gradient_joints(grad, y, grad_sum, grad_square_sum, b, t0, c0, T, V, C, g_b, g_c, g_t, g_v, y_b, y_c, y_t, y_v, BT: tl.constexpr, BC: tl.constexpr, BV: tl.constexpr):  # fmt: skip  # noqa: E501
    """`_joints` of the gradient of y, with what those of its sums add where they are given."""
    g = _joints(grad, b, t0, c0, T, V, C, g_b, g_c, g_t, g_v, BT, BC, BV)
    if grad_sum is not None:
        i = tl.arange(0, BT * BV)
        t, v, c = t0 + i // BV, i % BV, c0 + tl.arange(0, BC)
        total = g.to(tl.float32) + tl.load(grad_sum + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        if y is not None:
            slope = 2 * tl.load(grad_square_sum + c, mask=c < C, other=0.0).to(tl.float32)
            total += slope[None, :] * _joints(y, b, t0, c0, T, V, C, y_b, y_c, y_t, y_v, BT, BC, BV).to(tl.float32)
        g = tl.where(((t < T) & (v < V))[:, None] & (c < C)[None, :], total, 0.0).to(g.dtype)
    return g


@triton.jit
def _subset(adjacency, b, k, V, stride_b, stride_k, stride_v, stride_w, BV: tl.constexpr):
    """One subset of the adjacency (BV, BV), zeros outside."""
    v, w = tl.arange(0, BV), tl.arange(0, BV)
    at = b * stride_b + k * stride_k + v[:, None] * stride_v + w[None, :] * stride_w
    return tl.load(adjacency + at, mask=(v < V)[:, None] & (w < V)[None, :], other=0.0)


@triton.jit
def _aggregate(rows, edges, BT: tl.constexpr, BC: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr):
    """(BT * BC, BV) times (BV, BV), as (BT * BV, BC) in the dtype of the map."""
    z = tl.dot(rows, edges, input_precision=PRECISION).to(rows.dtype)
    return tl.reshape(tl.permute(tl.reshape(z, (BT, BC, BV)), (0, 2, 1)), (BT * BV, BC))


@triton.jit
def _graph_conv(
    x, y, grad_sum, grad_square_sum, weight, adjacency, bias, out, sums, C, O, T, V, K,
    x_b, x_c, x_t, x_v, y_b, y_c, y_t, y_v, w_k, w_o, w_c, a_b, a_k, a_v, a_w, o_b, o_c, o_t, o_v,
    BT: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, BV: tl.constexpr, SPREAD: tl.constexpr,
    FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The convolution of x, or of the gradient x of a map y."""
    block, b = tl.program_id(0), tl.program_id(2).to(tl.int64) + FIRST
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    t0 = block * BT
    acc = tl.zeros((BT * BV, BO), tl.float32)
    if bias is not None and not SPREAD:
        acc += tl.load(bias + o, mask=o < O, other=0.0).to(tl.float32)[None, :]
    elif bias is not None:
        for k in range(K):
            edges = _subset(adjacency, b, k, V, a_b, a_k, a_v, a_w, BV)
            reach = tl.sum(edges.to(tl.float32), 0)
            reach = tl.reshape(tl.broadcast_to(reach[None, :], (BT, BV)), (BT * BV,))
            acc += reach[:, None] * tl.load(bias + k * O + o, mask=o < O, other=0.0).to(tl.float32)[None, :]
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        rows = _gradient_rows(
            x, y, grad_sum, grad_square_sum, b, t0, c0, T, V, C, x_b, x_c, x_t, x_v, y_b, y_c, y_t, y_v, BT, BC, BV
        )
        for k in range(K):
            edges = _subset(adjacency, b, k, V, a_b, a_k, a_v, a_w, BV)
            w = tl.load(
                weight + k * w_k + c[:, None] * w_c + o[None, :] * w_o,
                mask=(c < C)[:, None] & (o < O)[None, :],
                other=0.0,
            )
            acc = tl.dot(_aggregate(rows, edges, BT, BC, BV, PRECISION), w, acc, input_precision=PRECISION)
    # (BO, BT, BV)
    values = tl.permute(tl.reshape(acc, (BT, BV, BO)), (2, 0, 1))
    t, v = t0 + tl.arange(0, BT), tl.arange(0, BV)
    frames = ((t < T)[:, None] & (v < V)[None, :])[None, :, :]
    at = o.to(tl.int64)[:, None, None] * o_c + t.to(tl.int64)[None, :, None] * o_t + v[None, None, :] * o_v
    tl.store(out + b * o_b + at, values, mask=(o < O)[:, None, None] & frames)
    if sums is not None:
        kept = tl.where(frames, values, 0.0)
        at = ((b * tl.num_programs(0) + block) * 2) * O + o
        tl.store(sums + at, tl.sum(tl.sum(kept, 2), 1), mask=o < O)
        tl.store(sums + at + O, tl.sum(tl.sum(kept * kept, 2), 1), mask=o < O)


@triton.jit
def _weight_gradient(
    grad, y, grad_sum, grad_square_sum, x, adjacency, weights, biases, C, O, T, V, K, items,
    g_b, g_c, g_t, g_v, y_b, y_c, y_t, y_v, x_b, x_c, x_t, x_v, a_b, a_k, a_v, a_w,
    BT: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, BV: tl.constexpr, SPREAD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of weight (and bias) over one share of the items, an item being BT frames of one row."""
    share, k = tl.program_id(0), tl.program_id(1)
    c_blocks, t_blocks = tl.cdiv(C, BC), tl.cdiv(T, BT)
    o0, c0 = tl.program_id(2) // c_blocks * BO, tl.program_id(2) % c_blocks * BC
    acc = tl.zeros((BO, BC), tl.float32)
    of_bias = tl.zeros((BO,), tl.float32)
    for item in range(share, items, tl.num_programs(0)):
        b, t0 = (item // t_blocks).to(tl.int64), item % t_blocks * BT
        edges = _subset(adjacency, b, k, V, a_b, a_k, a_v, a_w, BV)
        rows = _rows(x, b, t0, c0, T, V, C, x_b, x_c, x_t, x_v, BT, BC, BV)
        g = _gradient_joints(
            grad, y, grad_sum, grad_square_sum, b, t0, o0, T, V, O, g_b, g_c, g_t, g_v, y_b, y_c, y_t, y_v, BT, BO, BV
        )
        g = tl.trans(g)
        acc = tl.dot(g, _aggregate(rows, edges, BT, BC, BV, PRECISION), acc, input_precision=PRECISION)
        if biases is not None and not SPREAD:
            of_bias += tl.sum(g.to(tl.float32), 1)
        elif biases is not None:
            reach = tl.sum(edges.to(tl.float32), 0)
            reach = tl.reshape(tl.broadcast_to(reach[None, :], (BT, BV)), (BT * BV,))
            of_bias += tl.sum(g.to(tl.float32) * reach[None, :], 1)
    o, c = o0 + tl.arange(0, BO), c0 + tl.arange(0, BC)
    row = (share * K + k).to(tl.int64) * O + o
    tl.store(weights + row[:, None] * C + c[None, :], acc, mask=(o < O)[:, None] & (c < C)[None, :])
    if biases is not None:
        tl.store(biases + row, of_bias, mask=(o < O) & (c0 == 0))


@triton.jit
def _adjacency_gradient(
    grad, y, grad_sum, grad_square_sum, x, weight, bias, edges, C, O, T, V, K, items,
    g_b, g_c, g_t, g_v, y_b, y_c, y_t, y_v, x_b, x_c, x_t, x_v, w_k, w_o, w_c,
    BT: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, BV: tl.constexpr, FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one subset over one share of the items of a group of samples: all of them, or one with its own."""
    share, k, group = tl.program_id(0), tl.program_id(1), tl.program_id(2) + FIRST
    t_blocks = tl.cdiv(T, BT)
    acc = tl.zeros((BV, BV), tl.float32)
    for item in range(share, items, tl.num_programs(0)):
        b, t0 = (group * (items // t_blocks) + item // t_blocks).to(tl.int64), item % t_blocks * BT
        for o0 in range(0, O, BO):
            o = o0 + tl.arange(0, BO)
            projected = tl.zeros((BT * BV, BO), tl.float32)
            if bias is not None:
                projected += tl.load(bias + k * O + o, mask=o < O, other=0.0).to(tl.float32)[None, :]
            for c0 in range(0, C, BC):
                c = c0 + tl.arange(0, BC)
                w = tl.load(
                    weight + k * w_k + c[:, None] * w_c + o[None, :] * w_o,
                    mask=(c < C)[:, None] & (o < O)[None, :],
                    other=0.0,
                )
                joints = _joints(x, b, t0, c0, T, V, C, x_b, x_c, x_t, x_v, BT, BC, BV)
                projected = tl.dot(joints, w, projected, input_precision=PRECISION)
            g = _gradient_rows(
                grad, y, grad_sum, grad_square_sum, b, t0, o0, T, V, O,
                g_b, g_c, g_t, g_v, y_b, y_c, y_t, y_v, BT, BO, BV,
            )  # fmt: skip
            p = tl.permute(tl.reshape(projected.to(g.dtype), (BT, BV, BO)), (1, 0, 2))
            acc = tl.dot(tl.reshape(p, (BV, BT * BO)), g, acc, input_precision=PRECISION)
    v, w = tl.arange(0, BV), tl.arange(0, BV)
    subset = (group * tl.num_programs(0) + share).to(tl.int64) * K + k
    at = (subset * V + v[:, None]) * V + w[None, :]
    tl.store(edges + at, acc, mask=(v < V)[:, None] & (w < V)[None, :])


class _Source(NamedTuple):
    """A map to convolve; or the gradient of a map y with those of its sums, y being None without its squares."""

    x: Tensor
    y: Tensor | None = None
    grad_sum: Tensor | None = None
    grad_square_sum: Tensor | None = None

    def strides(self) -> tuple[int, ...]:
        return (*self.x.stride(), *((0, 0, 0, 0) if self.y is None else self.y.stride()))


def _setting(kernel: str, source: _Source) -> tuple[int, Tile, str]:
    """Joints in registers, the tile, and the precision of products."""
    x = source.x
    BV = max(16, triton.next_power_of_2(x.shape[3]))
    case = ("float32" if x.dtype == torch.float32 else "16-bit") + (" wide" if BV > 32 else "")
    case += " stats" if source.grad_sum is not None else ""
    return BV, tile(kernel, x.device, case), dot_precision(x.dtype)


def _gradient(grad: Tensor, y: Tensor | None, grad_sum: Tensor | None, grad_square_sum: Tensor | None) -> _Source:
    grad, _ = kernel_map(grad)
    if grad_square_sum is None:
        return _Source(grad) if grad_sum is None else _Source(grad, None, grad_sum.contiguous())
    grad_sum = torch.zeros_like(grad_square_sum) if grad_sum is None else grad_sum
    return _Source(grad, y, grad_sum.contiguous(), grad_square_sum.contiguous())


def _convolve(
    source: _Source, weight: Tensor, adjacency: Tensor, bias: Tensor | None, out: Tensor, stats: list[Tensor]
) -> None:
    """The kernel of the forward pass; with transposed operands also that of the gradient of x."""
    x = source.x
    B, C, T, V = x.shape
    K, O, _ = weight.shape
    BV, sizes, precision = _setting("graph_conv", source)
    blocks = triton.cdiv(T, sizes["BT"]), triton.cdiv(O, sizes["BO"])
    sums = x.new_empty(B * blocks[0], 2, O, dtype=torch.float32) if stats else None
    a_b = adjacency.stride(0) if adjacency.dim() == 4 else 0
    strides = (*source.strides(), *weight.stride(), a_b, *adjacency.stride()[-3:], *out.stride())
    bias = bias if bias is None else bias.contiguous()
    launch_by_sample(
        _graph_conv, blocks, B, x.device,
        *source, weight, adjacency, bias, out, sums, C, O, T, V, K, *strides,
        BV=BV, SPREAD=bias is not None and bias.dim() == 2, PRECISION=precision, **sizes,
    )  # fmt: skip
    for i, total in enumerate(stats):
        assert sums is not None
        torch.sum(sums[:, i], 0, dtype=torch.float64, out=total)


def graph_conv(
    x: Tensor, weight: Tensor, adjacency: Tensor, bias: Tensor | None, stats: bool, outputs: list[Tensor]
) -> None:
    x, _ = kernel_map(x)
    _convolve(_Source(x), weight, adjacency, bias, outputs[0], outputs[1:] if stats else [])


def graph_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    adjacency: Tensor,
    bias: Tensor | None,
    y: Tensor | None,
    grad_sum: Tensor | None,
    grad_square_sum: Tensor | None,
    needs_x: bool,
    needs_weight: bool,
    needs_adjacency: bool,
    needs_bias: bool,
    outputs: list[Tensor],
) -> None:
    source = _gradient(grad, y, grad_sum, grad_square_sum)
    x, _ = kernel_map(x)
    of_x, of_weight, of_adjacency, of_bias = outputs
    if needs_x:
        _convolve(source, weight.transpose(1, 2), adjacency.mT, None, of_x, [])
    if needs_weight or needs_bias:
        out = of_weight if needs_weight else None
        _reduce_weight(source, x, weight, adjacency, out, of_bias if needs_bias else None)
    if needs_adjacency:
        spread_bias = bias if bias is not None and bias.dim() == 2 else None
        _reduce_adjacency(source, x, weight, adjacency, spread_bias, of_adjacency)


def _reduce_weight(
    source: _Source, x: Tensor, weight: Tensor, adjacency: Tensor, out: Tensor | None, of_bias: Tensor | None
) -> None:
    B, C, T, V = x.shape
    K, O, _ = weight.shape
    BV, sizes, precision = _setting("graph_conv_weight", source)
    items = B * triton.cdiv(T, sizes["BT"])
    blocks = triton.cdiv(O, sizes["BO"]) * triton.cdiv(C, sizes["BC"])
    shares = splits(x.device, items, K * blocks)
    spread = of_bias is not None and of_bias.dim() == 2
    weights = x.new_empty(shares, K, O, C, dtype=torch.float32)
    biases = x.new_empty(shares, K, O, dtype=torch.float32) if of_bias is not None else None
    a_b = adjacency.stride(0) if adjacency.dim() == 4 else 0
    strides = (*source.strides(), *x.stride(), a_b, *adjacency.stride()[-3:])
    launch(
        _weight_gradient, (shares, K, blocks), x.device, *source, x, adjacency, weights, biases, C, O, T, V, K, items,
        *strides, BV=BV, SPREAD=spread, PRECISION=precision, **sizes,
    )  # fmt: skip
    if out is not None:
        out.copy_(weights.sum(0))
    if of_bias is not None and biases is not None:
        # A bias that is added to the output is summed by every subset alike.
        of_bias.copy_(biases.sum(0) if spread else biases[:, 0].sum(0))


def _reduce_adjacency(
    source: _Source, x: Tensor, weight: Tensor, adjacency: Tensor, bias: Tensor | None, out: Tensor
) -> None:
    B, C, T, V = x.shape
    K, O, _ = weight.shape
    BV, sizes, precision = _setting("graph_conv_adjacency", source)
    groups = B if adjacency.dim() == 4 else 1
    items = B // max(groups, 1) * triton.cdiv(T, sizes["BT"])
    shares = splits(x.device, items, K * groups)
    edges = x.new_empty(groups, shares, K, V, V, dtype=torch.float32)
    bias = bias if bias is None else bias.contiguous()
    strides = (*source.strides(), *x.stride(), *weight.stride())
    launch_by_sample(
        _adjacency_gradient, (shares, K), groups, x.device, *source, x, weight, bias, edges, C, O, T, V, K,
        items, *strides, BV=BV, PRECISION=precision, **sizes,
    )  # fmt: skip
    out.copy_(edges.sum(1).view_as(out))
