"""norm_act in Triton: tiles of channels by positions p = (b T + t) V + v, each map read once.

One kernel serves both memory formats; the tile decides which axis neighbouring threads run along.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._layout import in_format, is_channels_last, pitch
from skelops._triton import launch, splits, tile
from skelops._triton_math import hash_keys, hashed


@triton.jit
def places(first, c, C, TV, LAST: tl.constexpr, BP: tl.constexpr):
    """Where positions first.. of channels c lie: offsets are ``row * pitch + column``, with a pitch of 1 where
    contiguous."""
    if LAST:
        row = first + tl.arange(0, BP)
        return row[None, :], c.to(tl.int64)[:, None]
    sample = first // TV
    r = (first - sample * TV).to(tl.int32) + tl.arange(0, BP)
    sample += (r // TV).to(tl.int64)
    return (sample * C * TV)[None, :] + (r % TV)[None, :], (c.to(tl.int64) * TV)[:, None]


@triton.jit
def _dropped(values, key0, key1, first, c, C, threshold, factor, BP: tl.constexpr):
    index = ((first + tl.arange(0, BP)) * C)[None, :] + c.to(tl.int64)[:, None]
    return tl.where(hashed(index, key0, key1) >= tl.cast(threshold, tl.uint32), values * factor, 0.0)


@triton.jit
def _coefficients(table, c, channels):
    return tl.load(table + c, mask=channels, other=0.0)[:, None]


@triton.jit
def _sloped(values, negative_slope):
    """The slope times values; zero where the slope is, whatever the values."""
    return tl.where(negative_slope == 0.0, 0.0, values * negative_slope)


@triton.jit
def _forward(
    x, residual, y, scale, shift, residual_scale, residual_shift, seed,
    P, C, TV, x_pitch, residual_pitch, y_pitch, negative_slope, threshold, factor,
    LAST: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BP
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channels = c < C
    here = channels[:, None] & (first + tl.arange(0, BP) < P)[None, :]
    row, column = places(first, c, C, TV, LAST, BP)
    z = tl.load(x + row * x_pitch + column, mask=here, other=0.0).to(tl.float32)
    z = z * _coefficients(scale, c, channels) + _coefficients(shift, c, channels)
    if seed is not None:
        key0, key1 = hash_keys(seed)
        z = _dropped(z, key0, key1, first, c, C, threshold, factor, BP)
    if residual is not None:
        r = tl.load(residual + row * residual_pitch + column, mask=here, other=0.0).to(tl.float32)
        if residual_scale is not None:
            r = r * _coefficients(residual_scale, c, channels) + _coefficients(residual_shift, c, channels)
        z += r
    tl.store(y + row * y_pitch + column, tl.where(z < 0, _sloped(z, negative_slope), z), mask=here)


@triton.jit
def _store_sums(partials, n, N, c, channels, C, sums):
    """Row n of the share of this program: partials (shares, N, C)."""
    tl.store(partials + (tl.program_id(0).to(tl.int64) * N + n) * C + c, tl.sum(sums, 1), mask=channels)


@triton.jit
def _backward(
    grad, x, y, residual, grad_x, grad_residual, scale, residual_scale, partials, seed,
    P, C, TV, grad_pitch, x_pitch, residual_pitch, y_pitch, share, negative_slope, threshold, factor,
    LAST: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channels = c < C
    if seed is not None:
        key0, key1 = hash_keys(seed)
    of_scale = tl.zeros((BC, BP), tl.float32)
    of_shift = tl.zeros((BC, BP), tl.float32)
    of_residual_scale = tl.zeros((BC, BP), tl.float32)
    of_residual_shift = tl.zeros((BC, BP), tl.float32)
    start = tl.program_id(0).to(tl.int64) * share
    for first in range(start, tl.minimum(start + share, P), BP):
        here = channels[:, None] & (first + tl.arange(0, BP) < P)[None, :]
        row, column = places(first, c, C, TV, LAST, BP)
        g = tl.load(grad + row * grad_pitch + column, mask=here, other=0.0).to(tl.float32)
        if y is not None:
            off = tl.load(y + row * y_pitch + column, mask=here, other=0.0) <= 0
            g = tl.where(off, _sloped(g, negative_slope), g)
        if grad_residual is not None:
            r = g if residual_scale is None else g * _coefficients(residual_scale, c, channels)
            tl.store(grad_residual + row * y_pitch + column, r, mask=here)
        if residual is not None:
            r = tl.load(residual + row * residual_pitch + column, mask=here, other=0.0).to(tl.float32)
            of_residual_scale += g * r
            of_residual_shift += g
        if seed is not None:
            g = _dropped(g, key0, key1, first, c, C, threshold, factor, BP)
        if grad_x is not None:
            tl.store(grad_x + row * y_pitch + column, g * _coefficients(scale, c, channels), mask=here)
        if x is not None:
            of_scale += g * tl.load(x + row * x_pitch + column, mask=here, other=0.0).to(tl.float32)
            of_shift += g
    if x is not None:
        _store_sums(partials, 0, 4, c, channels, C, of_scale)
        _store_sums(partials, 1, 4, c, channels, C, of_shift)
    if residual is not None:
        _store_sums(partials, 2, 4, c, channels, C, of_residual_scale)
        _store_sums(partials, 3, 4, c, channels, C, of_residual_shift)


def with_pitch(x: Tensor | None, channels_last: bool) -> tuple[Tensor | None, int]:
    """A map in one of the two formats, copied where it is in another, and the pitch of its rows (1 if contiguous)."""
    if x is None:
        return None, 1
    x = in_format(x, channels_last)
    return x, pitch(x, True) if channels_last else 1


def blocks(kernel: str, x: Tensor, channels_last: bool) -> dict[str, int]:
    """The tile of a kernel, with as many channels as there are and more positions instead."""
    sizes = dict(tile(kernel, x.device, "channels_last" if channels_last else "default"))
    BC = min(sizes["BC"], triton.next_power_of_2(x.shape[1]))
    sizes["BC"], sizes["BP"] = BC, sizes["BP"] * (sizes["BC"] // BC)
    return sizes


def sizes_of(x: Tensor) -> tuple[int, int, int]:
    """Positions, channels, positions per sample."""
    B, C, T, V = x.shape
    return B * T * V, C, T * V


def shares(x: Tensor, sizes: dict[str, int]) -> tuple[tuple[int, int], int]:
    """A grid that fills the GPU, and the positions of one of its programs."""
    P, C, _ = sizes_of(x)
    of_channels = triton.cdiv(C, sizes["BC"])
    tiles = triton.cdiv(P, sizes["BP"])
    each = triton.cdiv(tiles, splits(x.device, tiles, of_channels))
    return (max(1, triton.cdiv(tiles, max(each, 1))), of_channels), each * sizes["BP"]


def _dropout(dropout: float) -> tuple[int, float]:
    return min(math.ceil(dropout * 2**32), 2**32 - 1), 1 / (1 - dropout)


def norm_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_shift: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    outputs: list[Tensor],
) -> None:
    (y,) = outputs
    last = is_channels_last(x)
    (x_map, x_pitch), (residual, residual_pitch) = with_pitch(x, last), with_pitch(residual, last)
    sizes = blocks("norm_act", x, last)
    P, C, TV = sizes_of(x)
    coefficients = (p if p is None else p.contiguous() for p in (scale, shift, residual_scale, residual_shift))
    launch(
        _forward, (triton.cdiv(P, sizes["BP"]), triton.cdiv(C, sizes["BC"])), x.device,
        x_map, residual, y, *coefficients, seed, P, C, TV, x_pitch, residual_pitch, C if last else 1,
        negative_slope, *_dropout(dropout), LAST=last, **sizes,
    )  # fmt: skip


def norm_act_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    needs: list[bool],
    outputs: list[Tensor],
) -> None:
    needs_x, needs_affine, needs_residual, needs_residual_affine = needs
    last = is_channels_last(x)
    grad_map, grad_pitch = with_pitch(grad, last)
    x_map, x_pitch = with_pitch(x if needs_affine else None, last)
    residual, residual_pitch = with_pitch(residual if needs_residual_affine else None, last)
    y, _ = with_pitch(y, last)
    sizes = blocks("norm_act_backward", x, last)
    P, C, TV = sizes_of(x)
    grid, share = shares(x, sizes)
    partials = None
    if needs_affine or needs_residual_affine:
        partials = torch.empty(grid[0], 4, C, dtype=torch.float32, device=x.device)
    launch(
        _backward, grid, x.device, grad_map, x_map, y, residual,
        outputs[0] if needs_x else None, outputs[3] if needs_residual else None, scale.contiguous(),
        residual_scale if residual_scale is None else residual_scale.contiguous(), partials, seed,
        P, C, TV, grad_pitch, x_pitch, residual_pitch, C if last else 1, share,
        negative_slope, *_dropout(dropout), LAST=last, **sizes,
    )  # fmt: skip
    if partials is not None:
        sums = partials.sum(0, dtype=torch.float64)
        for output, total in zip((*outputs[1:3], *outputs[4:]), sums, strict=True):
            if output.numel():
                output.copy_(total)
