"""channel_graph_conv in Triton: a program holds the topology of a few channels of a sample in registers for all frames.

Blocks: BC channels, BK subsets and BV joints (K and V rounded up to powers of two, in registers only); a topology is a
tile (BC, BK * BV, BV) from sources of every subset to targets. There is no sum over channels in the contraction, so it
runs on vectors, in float32. Reductions over samples and blocks of channels have two stages of fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._layout import kernel_map
from skelops._triton import launch_by_sample, tile
from skelops._triton_math import tanh


@triton.jit
def _differences(query, key, b, r, K, R, V, BK: tl.constexpr, BV: tl.constexpr):
    """tanh(query_w - key_v) of every subset (BK * BV, BV), zeros outside."""
    i, w = tl.arange(0, BK * BV), tl.arange(0, BV)
    k, v = i // BV, i % BV
    row = ((b * K + k) * R + r) * V
    here = (k < K) & (v < V)
    of_key = tl.load(key + row + v, mask=here, other=0.0).to(tl.float32)
    inside = here[:, None] & (w < V)[None, :]
    of_query = tl.load(query + row[:, None] + w[None, :], mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, tanh(of_query - of_key[:, None]), 0.0)


@triton.jit
def _of_subsets(values, c, K, C, stride, at, BK: tl.constexpr, BV: tl.constexpr):
    """values (K, C, ...) at a place of the last axis, for each source: (BC, BK * BV), zeros outside."""
    i = tl.arange(0, BK * BV)
    k = i // BV
    where = (k[None, :] * C + c[:, None]) * stride + at
    return tl.load(values + where, mask=(c < C)[:, None] & (k < K)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _frame(x, b, c, t, K, C, V, stride_b, stride_c, stride_t, stride_v, BK: tl.constexpr, BV: tl.constexpr):
    """Where a frame of x (B, K * C, T, V) lies, (BC, BK * BV), and what of it is inside."""
    i = tl.arange(0, BK * BV)
    k, v = i // BV, i % BV
    channel = (k[None, :] * C + c[:, None]).to(tl.int64)
    here = (c < C)[:, None] & ((k < K) & (v < V))[None, :]
    return x + b * stride_b + channel * stride_c + t * stride_t + v.to(tl.int64)[None, :] * stride_v, here


@triton.jit
def _gradient_frame(
    grad, y, grad_sum, grad_square_sum, b, c, t, C, V, g_b, g_c, g_t, g_v, y_b, y_c, y_t, y_v, BV: tl.constexpr
):
    """A frame of the gradient of y (BC, BV), with what comes through its sums."""
    v = tl.arange(0, BV)
    here = (c < C)[:, None] & (v < V)[None, :]
    rows, columns = c.to(tl.int64)[:, None], v.to(tl.int64)[None, :]
    value = tl.load(grad + b * g_b + rows * g_c + t * g_t + columns * g_v, mask=here, other=0.0).to(tl.float32)
    if grad_sum is not None:
        constant = tl.load(grad_sum + c, mask=c < C, other=0.0).to(tl.float32)
        value += tl.where(here, constant[:, None], 0.0)
    if grad_square_sum is not None:
        slope = 2.0 * tl.load(grad_square_sum + c, mask=c < C, other=0.0).to(tl.float32)
        output = tl.load(y + b * y_b + rows * y_c + t * y_t + columns * y_v, mask=here, other=0.0).to(tl.float32)
        value += slope[:, None] * output
    return value


@triton.jit
def _topology(
    query, key, weight, bias, alpha, adjacency, b, c, K, C, R, V, BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr
):
    """(BC, BK * BV, BV), zeros outside."""
    tile_ = tl.zeros((BC, BK * BV, BV), tl.float32)
    for r in range(R):
        of_weight = _of_subsets(weight, c, K, C, R, r, BK, BV)
        tile_ += of_weight[:, :, None] * _differences(query, key, b, r, K, R, V, BK, BV)[None, :, :]
    i, w = tl.arange(0, BK * BV), tl.arange(0, BV)
    k, v = i // BV, i % BV
    inside = ((k < K) & (v < V))[:, None] & (w < V)[None, :]
    fixed = tl.load(adjacency + (k * V + v)[:, None] * V + w[None, :], mask=inside, other=0.0).to(tl.float32)
    learned = (tile_ + _of_subsets(bias, c, K, C, 1, 0, BK, BV)[:, :, None]) * tl.load(alpha).to(tl.float32)
    return tl.where(inside[None, :, :], learned + fixed[None, :, :], 0.0)


@triton.jit
def _forward(
    x, query, key, weight, bias, alpha, adjacency, y, sums, C, T, V, K, R,
    x_b, x_c, x_t, x_v, y_b, y_c, y_t, y_v, BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    block, b = tl.program_id(0), tl.program_id(1).to(tl.int64) + FIRST
    c, w = block * BC + tl.arange(0, BC), tl.arange(0, BV)
    edges = _topology(query, key, weight, bias, alpha, adjacency, b, c, K, C, R, V, BC, BK, BV)
    total, squares = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    here = (c < C)[:, None] & (w < V)[None, :]
    to = y + b * y_b + c.to(tl.int64)[:, None] * y_c + w.to(tl.int64)[None, :] * y_v
    for frame in range(T):
        t = tl.cast(frame, tl.int64)
        at, inside = _frame(x, b, c, t, K, C, V, x_b, x_c, x_t, x_v, BK, BV)
        sources = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        value = tl.sum(sources[:, :, None] * edges, 1)
        tl.store(to + t * y_t, value, mask=here)
        if sums is not None:
            value = value.to(y.dtype.element_ty).to(tl.float32)  # the sums of what was stored
            total += tl.sum(value, 1)
            squares += tl.sum(value * value, 1)
    if sums is not None:
        at_sums = sums + b * 2 * C + c
        tl.store(at_sums, total, mask=c < C)
        tl.store(at_sums + C, squares, mask=c < C)


@triton.jit
def _backward_x(
    grad, y, grad_sum, grad_square_sum, query, key, weight, bias, alpha, adjacency, grad_x, C, T, V, K, R,
    g_b, g_c, g_t, g_v, y_b, y_c, y_t, y_v, x_b, x_c, x_t, x_v,
    BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    block, b = tl.program_id(0), tl.program_id(1).to(tl.int64) + FIRST
    c = block * BC + tl.arange(0, BC)
    edges = _topology(query, key, weight, bias, alpha, adjacency, b, c, K, C, R, V, BC, BK, BV)
    for frame in range(T):
        t = tl.cast(frame, tl.int64)
        targets = _gradient_frame(
            grad, y, grad_sum, grad_square_sum, b, c, t, C, V, g_b, g_c, g_t, g_v, y_b, y_c, y_t, y_v, BV
        )
        at, inside = _frame(grad_x, b, c, t, K, C, V, x_b, x_c, x_t, x_v, BK, BV)
        tl.store(at, tl.sum(targets[:, None, :] * edges, 2), mask=inside)


@triton.jit
def _backward_topology(
    grad, y, grad_sum, grad_square_sum, x, query, key, weight, weights, biases, edges, queries, keys, C, T, V, K, R,
    g_b, g_c, g_t, g_v, y_b, y_c, y_t, y_v, x_b, x_c, x_t, x_v,
    BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Gradients, without alpha, of a sample's block of channels.

    That of weight (B, K, C, R) and bias (B, K, C) is of the sample; of adjacency (B, blocks, K, V, V), query and key
    (B, blocks, K, R, V) of the block, too.
    """
    block, b = tl.program_id(0), tl.program_id(1).to(tl.int64) + FIRST
    c = block * BC + tl.arange(0, BC)
    of_topology = tl.zeros((BC, BK * BV, BV), tl.float32)
    for frame in range(T):
        t = tl.cast(frame, tl.int64)
        targets = _gradient_frame(
            grad, y, grad_sum, grad_square_sum, b, c, t, C, V, g_b, g_c, g_t, g_v, y_b, y_c, y_t, y_v, BV
        )
        at, inside = _frame(x, b, c, t, K, C, V, x_b, x_c, x_t, x_v, BK, BV)
        of_topology += tl.load(at, mask=inside, other=0.0).to(tl.float32)[:, :, None] * targets[:, None, :]
    i, w = tl.arange(0, BK * BV), tl.arange(0, BV)
    k, v, subset = i // BV, i % BV, tl.arange(0, BK)
    source = (k < K) & (v < V)
    part = (b * tl.num_programs(0) + block) * K
    at_edges = ((part + k) * V + v)[:, None] * V + w[None, :]
    tl.store(edges + at_edges, tl.sum(of_topology, 0), mask=source[:, None] & (w < V)[None, :])
    of_channel = tl.sum(tl.reshape(tl.sum(of_topology, 2), (BC, BK, BV)), 2)
    at_channel = (b * K + subset)[None, :] * C + c[:, None]
    channels = (c < C)[:, None] & (subset < K)[None, :]
    tl.store(biases + at_channel, of_channel, mask=channels)
    for r in range(R):
        tangent = _differences(query, key, b, r, K, R, V, BK, BV)
        of_weight = tl.sum(of_topology * tangent[None, :, :], 2)
        tl.store(weights + at_channel * R + r, tl.sum(tl.reshape(of_weight, (BC, BK, BV)), 2), mask=channels)
        of_differences = tl.sum(_of_subsets(weight, c, K, C, R, r, BK, BV)[:, :, None] * of_topology, 0)
        of_differences *= 1.0 - tangent * tangent
        at_key = ((part + k) * R + r) * V + v
        tl.store(keys + at_key, -tl.sum(of_differences, 1), mask=source)
        of_query = tl.sum(tl.reshape(of_differences, (BK, BV, BV)), 1)
        at_query = ((part + subset) * R + r)[:, None] * V + w[None, :]
        tl.store(queries + at_query, of_query, mask=(subset < K)[:, None] & (w < V)[None, :])


def _blocks(kernel: str, x: Tensor, weight: Tensor) -> dict[str, int]:
    """The tile of a kernel: as many channels as have topologies that fit into BE elements of each thread."""
    K, V = weight.shape[0], x.shape[3]
    BK, BV = triton.next_power_of_2(K), triton.next_power_of_2(V)
    sizes = dict(tile(kernel, x.device))
    elements = sizes.pop("BE") * 32 * sizes["num_warps"]
    BC = max(1, min(elements // (BK * BV * BV), triton.next_power_of_2(weight.shape[1])))
    return {"BC": BC, "BK": BK, "BV": BV, **sizes}


def channel_graph_conv(
    x: Tensor,
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    bias: Tensor,
    alpha: Tensor,
    adjacency: Tensor,
    stats: bool,
    outputs: list[Tensor],
) -> None:
    x, _ = kernel_map(x)
    (B, _, T, V), (K, C, R) = x.shape, weight.shape
    sizes = _blocks("channel_graph_conv", x, weight)
    sums = x.new_empty(B, 2, C, dtype=torch.float32) if stats else None
    parts = [part.contiguous() for part in (query, key, weight, bias, alpha, adjacency)]
    strides = (*x.stride(), *outputs[0].stride())
    blocks = (triton.cdiv(C, sizes["BC"]),)
    launch_by_sample(_forward, blocks, B, x.device, x, *parts, outputs[0], sums, C, T, V, K, R, *strides, **sizes)
    if sums is not None:
        for out, total in zip(outputs[1:], sums.sum(0, dtype=torch.float64), strict=True):
            out.copy_(total)


def channel_graph_conv_backward(
    grad: Tensor,
    x: Tensor,
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    bias: Tensor,
    alpha: Tensor,
    adjacency: Tensor,
    y: Tensor | None,
    grad_sum: Tensor | None,
    grad_square_sum: Tensor | None,
    needs_x: bool,
    needs_topology: bool,
    outputs: list[Tensor],
) -> None:
    (grad, _), (x, _) = kernel_map(grad), kernel_map(x)
    y = None if y is None else kernel_map(y)[0]
    (B, _, T, V), (K, C, R) = x.shape, weight.shape
    query, key, weight, bias, alpha, adjacency = (
        part.contiguous() for part in (query, key, weight, bias, alpha, adjacency)
    )
    of_sums = [None if part is None else part.float().contiguous() for part in (grad_sum, grad_square_sum)]
    of_y = (0, 0, 0, 0) if y is None else y.stride()
    if needs_x:
        sizes = _blocks("channel_graph_conv_x", x, weight)
        launch_by_sample(
            _backward_x, (triton.cdiv(C, sizes["BC"]),), B, x.device,
            grad, y, *of_sums, query, key, weight, bias, alpha, adjacency, outputs[0],
            C, T, V, K, R, *grad.stride(), *of_y, *outputs[0].stride(), **sizes,
        )  # fmt: skip
    if not needs_topology:
        return
    sizes = _blocks("channel_graph_conv_topology", x, weight)
    blocks = triton.cdiv(C, sizes["BC"])
    shapes = (B, K, C, R), (B, K, C), (B, blocks, K, V, V), (B, blocks, K, R, V), (B, blocks, K, R, V)
    weights, biases, edges, queries, keys = (x.new_empty(shape, dtype=torch.float32) for shape in shapes)
    launch_by_sample(
        _backward_topology, (blocks,), B, x.device, grad, y, *of_sums, x, query, key, weight, weights, biases, edges,
        queries, keys, C, T, V, K, R, *grad.stride(), *of_y, *x.stride(), **sizes,
    )  # fmt: skip
    scale = alpha.float()
    of_weight, of_bias = weights.sum(0, dtype=torch.float64), biases.sum(0, dtype=torch.float64)
    outputs[1].copy_(queries.sum(1) * scale)
    outputs[2].copy_(keys.sum(1) * scale)
    outputs[3].copy_(of_weight * scale)
    outputs[4].copy_(of_bias * scale)
    outputs[5].copy_((of_weight * weight).sum() + (of_bias * bias).sum())
    outputs[6].copy_(edges.sum((0, 1)))
