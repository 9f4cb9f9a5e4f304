"""temporal_max_pool in Triton: tiles of channels by positions (b, t, v); activated values and maxima live in registers.

One kernel serves both memory formats by its strides; the tile decides which axis neighbouring threads run along.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._layout import is_channels_last
from skelops._triton import launch, tile


@triton.jit
def _activated(x, b, t, v, c, here, T, scale, shift, x_b, x_c, x_t, x_v):
    """relu(scale x + shift) of frames t, and x itself, (BC, BP); -1, which is below all, outside the frames."""
    inside = here & ((t >= 0) & (t < T))[None, :]
    at = (b * x_b + t.to(tl.int64) * x_t + v * x_v)[None, :] + (c.to(tl.int64) * x_c)[:, None]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    a = tl.maximum(values * scale + shift, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(inside, a, -1.0), values


@triton.jit
def _forward(
    x, scale, shift, y, sums, P, C, T, T_out, V, stride, x_b, x_c, x_t, x_v, y_b, y_c, y_t, y_v,
    BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    p = block * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channels = c < C
    here = channels[:, None] & (p < P)[None, :]
    b, t, v = p // (T_out * V), (p // V % T_out).to(tl.int32), p % V
    a = tl.load(scale + c, mask=channels, other=0.0)[:, None]
    s = tl.load(shift + c, mask=channels, other=0.0)[:, None]
    most = tl.full((BC, BP), -1.0, tl.float32)
    for i in range(3):
        value, _ = _activated(x, b, t * stride + i - 1, v, c, here, T, a, s, x_b, x_c, x_t, x_v)
        most = tl.maximum(most, value, propagate_nan=tl.PropagateNan.ALL)
    at = (b * y_b + t.to(tl.int64) * y_t + v * y_v)[None, :] + (c.to(tl.int64) * y_c)[:, None]
    tl.store(y + at, most, mask=here)
    if sums is not None:
        most = tl.where(here, most, 0.0)
        row = sums + block * 2 * C + c
        tl.store(row, tl.sum(most, 1), mask=channels)
        tl.store(row + C, tl.sum(most * most, 1), mask=channels)


@triton.jit
def _backward(
    grad, x, scale, shift, grad_sum, grad_square_sum, grad_x, sums, P, C, T, T_out, V, stride,
    g_b, g_c, g_t, g_v, x_b, x_c, x_t, x_v, h_b, h_c, h_t, h_v,
    BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Gradient of every frame of x: what comes back from the windows whose first maximum it is."""
    block = tl.program_id(0).to(tl.int64)
    p = block * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channels = c < C
    here = channels[:, None] & (p < P)[None, :]
    b, t, v = p // (T * V), (p // V % T).to(tl.int32), p % V
    a = tl.load(scale + c, mask=channels, other=0.0)[:, None]
    s = tl.load(shift + c, mask=channels, other=0.0)[:, None]
    own, values = _activated(x, b, t, v, c, here, T, a, s, x_b, x_c, x_t, x_v)
    total = tl.zeros((BC, BP), tl.float32)
    for i in range(3):
        # The window whose frame i - 1 this one is.
        center = t + 1 - i
        window = center // stride
        wins = here & ((center >= 0) & (center % stride == 0) & (window < T_out))[None, :]
        for j in range(3):
            other, _ = _activated(x, b, center + j - 1, v, c, here, T, a, s, x_b, x_c, x_t, x_v)
            # Of equal numbers the first is the maximum; a NaN is above them, of several the last.
            above = (own > other) | ((own == other) & (j > i)) | ((own != own) & ((other == other) | (j < i)))
            wins = wins & ((j == i) | above)
        at = (b * g_b + window.to(tl.int64) * g_t + v * g_v)[None, :] + (c.to(tl.int64) * g_c)[:, None]
        g = tl.load(grad + at, mask=wins, other=0.0).to(tl.float32)
        if grad_sum is not None:
            g += tl.load(grad_sum + c, mask=channels, other=0.0).to(tl.float32)[:, None]
        if grad_square_sum is not None:
            g += 2 * tl.load(grad_square_sum + c, mask=channels, other=0.0).to(tl.float32)[:, None] * own
        total += tl.where(wins & ~(own <= 0), g, 0.0)
    at = (b * h_b + t.to(tl.int64) * h_t + v * h_v)[None, :] + (c.to(tl.int64) * h_c)[:, None]
    tl.store(grad_x + at, total * a, mask=here)
    row = sums + block * 2 * C + c
    tl.store(row, tl.sum(total * values, 1), mask=channels)
    tl.store(row + C, tl.sum(total, 1), mask=channels)


def _blocks(kernel: str, x: Tensor) -> dict[str, int]:
    return tile(kernel, x.device, "channels_last" if is_channels_last(x) else "default")


def temporal_max_pool(x: Tensor, scale: Tensor, shift: Tensor, stride: int, stats: bool, outputs: list[Tensor]) -> None:
    y, *totals = outputs
    B, C, T, V = x.shape
    sizes, P = _blocks("temporal_max_pool", x), B * y.shape[2] * V
    grid = (triton.cdiv(P, sizes["BP"]), triton.cdiv(C, sizes["BC"]))
    sums = torch.empty(grid[0], 2, C, dtype=torch.float32, device=x.device) if stats else None
    launch(
        _forward, grid, x.device, x, scale.contiguous(), shift.contiguous(), y, sums, P, C, T, y.shape[2], V, stride,
        *x.stride(), *y.stride(), **sizes,
    )  # fmt: skip
    for i, total in enumerate(totals):
        if sums is not None:
            total.copy_(sums[:, i].sum(0, dtype=torch.float64))


def temporal_max_pool_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    grad_sum: Tensor | None,
    grad_square_sum: Tensor | None,
    stride: int,
    outputs: list[Tensor],
) -> None:
    grad_x, *totals = outputs
    B, C, T, V = x.shape
    sizes, P = _blocks("temporal_max_pool_backward", x), B * T * V
    grid = (triton.cdiv(P, sizes["BP"]), triton.cdiv(C, sizes["BC"]))
    sums = torch.empty(grid[0], 2, C, dtype=torch.float32, device=x.device)
    of_sums = [None if part is None else part.contiguous() for part in (grad_sum, grad_square_sum)]
    launch(
        _backward, grid, x.device, grad, x, scale.contiguous(), shift.contiguous(), *of_sums, grad_x, sums, P, C, T,
        grad.shape[2], V, stride, *grad.stride(), *x.stride(), *grad_x.stride(), **sizes,
    )  # fmt: skip
    for i, total in enumerate(totals):
        total.copy_(sums[:, i].sum(0, dtype=torch.float64))
