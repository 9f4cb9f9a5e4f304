"""channel_sums in Triton: shares of the positions of a map, each read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skelops._layout import is_channels_last
from skelops._triton import launch
from skelops.ops.norm_act.triton import blocks, places, shares, sizes_of, with_pitch


@triton.jit
def _sums(
    x, partials, P, C, TV, pitch, share,
    LAST: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channels = c < C
    sums = tl.zeros((BC, BP), tl.float32)
    squares = tl.zeros((BC, BP), tl.float32)
    start = tl.program_id(0).to(tl.int64) * share
    for first in range(start, tl.minimum(start + share, P), BP):
        here = channels[:, None] & (first + tl.arange(0, BP) < P)[None, :]
        row, column = places(first, c, C, TV, LAST, BP)
        values = tl.load(x + row * pitch + column, mask=here, other=0.0).to(tl.float32)
        sums += values
        squares += values * values
    row = partials + tl.program_id(0).to(tl.int64) * 2 * C + c
    tl.store(row, tl.sum(sums, 1), mask=channels)
    tl.store(row + C, tl.sum(squares, 1), mask=channels)


def channel_sums(x: Tensor, outputs: list[Tensor]) -> None:
    last = is_channels_last(x)
    x_map, pitch = with_pitch(x, last)
    sizes = blocks("channel_sums", x, last)
    P, C, TV = sizes_of(x)
    grid, share = shares(x, sizes)
    partials = torch.empty(grid[0], 2, C, dtype=torch.float32, device=x.device)
    launch(_sums, grid, x.device, x_map, partials, P, C, TV, pitch, share, LAST=last, **sizes)
    for n, output in enumerate(outputs):
        torch.sum(partials[:, n], 0, dtype=torch.float64, out=output)
