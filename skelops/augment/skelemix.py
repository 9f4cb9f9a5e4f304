"""SkeleMix: a rectangle of body parts x frames of every clip is replaced by that of another clip of the batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .._checks import positive_integer
from ..graphs import Layout, get_layout


class Mix(NamedTuple):
    """What `skelemix` returns.

    Attributes:
        clips: mixed clips (N, C, T, V, M).
        mask: pasted cells (ceil(T / stride), V), bool, at the resolution of the encoder's last map.
        partner: clip that each paste came from (N,), int64.
    """

    clips: Tensor
    mask: Tensor
    partner: Tensor


def _integer(low: int, high: int, generator: Generator | None, device: torch.device) -> Tensor:
    return torch.randint(low, high + 1, (), generator=generator, device=device)


def skelemix(
    clips: Tensor,
    layout: str | Layout,
    generator: Generator | None = None,
    parts: tuple[int, int] = (2, 3),
    share: tuple[float, float] = (7 / 16, 11 / 16),
    stride: int = 4,
) -> Mix:
    """Mix every clip with a partner; one draw of partner, body parts and frames serves the whole batch.

    ``partner[i] = (i + n) mod N`` with n from 1 to N - 2. In ``parts[0]`` to ``parts[1]`` of the layout's body parts, a
    run of blocks of ``stride`` frames is replaced in all channels and bodies. The run holds ``share[0]`` to
    ``share[1]`` of the clip's blocks: 7 to 11 of the 16 blocks of a 64-frame clip, as released. Nothing waits for the
    device.

    Args:
        clips: (N, C, T, V, M), N at least 3.
        layout: joint layout with body parts.
        generator: of the clips' device; None is torch's global one.
        parts: least and most body parts.
        share: least and largest share of the blocks.
        stride: frames per block, the encoder's temporal stride. The last block is shorter where T is no multiple of it.

    Raises:
        ValueError: clips have another shape, a range is empty or out of bounds, or ``stride`` is no positive integer;
            names the argument.

    Source: Chen et al., SkeleMixCLR (arXiv 2207.03065), released ``ske_swap``.
    """
    layout = get_layout(layout)
    if clips.dim() != 5 or clips.shape[3] != layout.num_joints or clips.shape[0] < 3:
        raise ValueError(f"clips: expected shape (N >= 3, C, T, {layout.num_joints}, M), got {tuple(clips.shape)}")
    if not 1 <= parts[0] <= parts[1] < len(layout.parts):
        raise ValueError(f"parts: expected 1 <= least <= most < {len(layout.parts)}, got {parts}")
    if not 0 < share[0] <= share[1] < 1:
        raise ValueError(f"share: expected 0 < least <= largest < 1, got {share}")
    positive_integer("stride", stride)
    clip_count, frames, device = clips.shape[0], clips.shape[2], clips.device
    blocks = -(-frames // stride)
    least, most = (max(1, round(bound * blocks)) for bound in share)

    shift = _integer(1, clip_count - 2, generator, device)
    partner = (torch.arange(clip_count, device=device) + shift) % clip_count

    # The parts whose random numbers are the smallest: a uniform choice without replacement.
    order = torch.rand(len(layout.parts), generator=generator, device=device).argsort().argsort()
    chosen = order < _integer(*parts, generator, device)
    # Joint by joint, since a table of them would have to be copied from the host.
    part_of = {joint: part for part, joints in enumerate(layout.parts) for joint in joints}
    joints = torch.stack([chosen[part_of[joint]] for joint in range(layout.num_joints)])

    length = _integer(least, most, generator, device)
    uniform = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    start = (uniform * (blocks - length + 1)).long()
    steps = torch.arange(blocks, device=device)
    mask = ((steps >= start) & (steps < start + length))[:, None] & joints

    pasted = mask.repeat_interleave(stride, 0)[:frames, :, None]
    return Mix(torch.where(pasted, clips[partner], clips), mask, partner)
