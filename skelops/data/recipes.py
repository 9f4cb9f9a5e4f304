"""How clips of Kinect v2 are prepared: centred, turned and brought to a length, as published methods do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .bodies import main_bodies, standing_bodies
from .transforms import center_start, first_body, pad, preprocess, present_bodies, resize, uniform_frames

if TYPE_CHECKING:
    from .ntu import Recording

#: Frames of the longest recording of NTU RGB+D; whole clips that are longer are resized to as many.
MAX_FRAMES = 300
_BASE, _MIDDLE, _LEFT_SHOULDER, _LEFT_ELBOW, _RIGHT_SHOULDER, _SPINE = 0, 1, 4, 5, 8, 20


def repeat_bodies(clip: Tensor) -> Tensor:
    """Fill the places of a body (C, T, V, M) before it comes and after it goes with its own frames, over and over."""
    filled = clip.clone()
    for body in range(clip.shape[3]):
        frames = clip[..., body].flatten(2).any(2).any(0).nonzero().squeeze(1)
        if len(frames):
            # Where the body is there from the start, gaps stay, as released.
            kept = torch.arange(int(frames[-1]) + 1) if frames[0] == 0 else frames
            filled[..., body] = clip[:, kept[torch.arange(clip.shape[1]) % len(kept)], :, body]
    return filled


def turn_onto(clips: Tensor, direction: Tensor, axis: int) -> Tensor:
    """Rotate clips (N, 3, T, V, M) by the smallest angle that brings a direction (N, 3) onto axis 0, 1 or 2; not at all
    where it is zero, or the opposite of the axis."""
    target = torch.eye(3, dtype=torch.float64)[axis].expand_as(direction)
    unit = normalize(direction.double(), dim=1)
    a, b, c = torch.linalg.cross(unit, target).unbind(1)
    zero = torch.zeros_like(a)
    matrix = torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], 1).view(-1, 3, 3)
    cosine = (unit * target).sum(1)
    matrix = matrix + matrix @ matrix / (1 + cosine).clamp(min=1e-12)[:, None, None]
    return clips + torch.einsum("nij,njtvm->nitvm", matrix.to(clips.dtype), clips)


def _bone(clips: Tensor, start: int, end: int) -> Tensor:
    """The vector (N, 3) from a joint to another of the first body in the first frame."""
    joints = first_body(clips[:, :, :1])[:, :, 0, :, 0]
    return joints[:, :, end] - joints[:, :, start]


def scd_net(clips: Tensor) -> Tensor:
    """SCD-Net, 2s-AGCN: every frame centred on the middle of the first body's spine; of its first frame the lower spine
    upright (along z), then the shoulders along x."""
    clips = torch.where(present_bodies(clips), clips - first_body(clips)[:, :, :, _MIDDLE, None], 0)
    clips = turn_onto(clips, _bone(clips, _BASE, _MIDDLE), 2)
    return turn_onto(clips, _bone(clips, _LEFT_SHOULDER, _RIGHT_SHOULDER), 0)


def sds_cl(clips: Tensor) -> Tensor:
    """SDS-CL, DSTA-Net: the base of the first body's spine in the first frame is the origin, its spine there has length
    one and is upright (along z), and what is horizontal of the way from the spine to the left elbow lies along x."""
    clips = center_start(clips, _BASE)
    length = _bone(clips, _BASE, _SPINE).norm(dim=1)
    clips = clips / torch.where(length > 0, length, 1)[:, None, None, None, None]
    clips = turn_onto(clips, _bone(clips, _BASE, _SPINE), 2)
    return turn_onto(clips, _bone(clips, _SPINE, _LEFT_ELBOW) * clips.new_tensor([1, 1, 0]), 0)


def std_cl(clips: Tensor) -> Tensor:
    """STD-CL, CTR-GCN: every frame of a body centred on its joint 21, which keeps its own way through the room from
    where the middle of the first body's spine was at the start."""
    clips = center_start(clips, _MIDDLE)
    centered = clips - clips[:, :, :, _SPINE, None]
    centered[:, :, :, _SPINE] = clips[:, :, :, _SPINE]
    return centered


def center_resize(clips: Tensor, lengths: Tensor, frames: int, share: float = 0.95) -> Tensor:
    """Leave out (1 - share) / 2 of the frames at both ends, rounded down, and resize the rest."""
    starts = ((1 - share) * lengths.double() / 2).long()
    return resize(clips, lengths - 2 * starts, frames, starts)


class Recipe(NamedTuple):
    """What is done to whole clips (N, 3, T, 25, M), how those of evaluation come to their frames, and which bodies of a
    recording make the clip."""

    change: Callable[[Tensor], Tensor]
    to_frames: Callable[[Tensor, Tensor, int], Tensor]
    repeats_bodies: bool = False
    bodies: Callable[[Recording], np.ndarray] = main_bodies


RECIPES = {
    "scd_net": Recipe(scd_net, center_resize, repeats_bodies=True),
    "sds_cl": Recipe(sds_cl, partial(uniform_frames, last=False), bodies=standing_bodies),
    "std_cl": Recipe(std_cl, center_resize),
}


def check_recipe(name: str) -> None:
    """Refuses an unknown recipe.

    Raises:
        ValueError: lists the known ones.
    """
    if name != "resize" and name not in RECIPES:
        raise ValueError(f"recipe: expected one of resize, {', '.join(RECIPES)}, got {name!r}")


def record(frames: int | None) -> np.dtype:
    """What a cache file keeps of a clip: how many frames it has, and what `prepare` makes of it."""
    return np.dtype([("length", "<i4"), ("clip", "<f4", (3, frames or MAX_FRAMES, 25, 2))])


def prepare(clips: Sequence[Tensor], recipe: str, frames: int | None, align: bool) -> tuple[Tensor, Tensor]:
    """Clips (3, T_n, 25, M) by a recipe: (N, 3, frames, 25, M) and lengths (N,).

    Args:
        recipe: "resize", which is `transforms.preprocess` with ``align``, or one of `RECIPES`.
        frames: of the results; None keeps all (at most `MAX_FRAMES`) and pads with zeros to `MAX_FRAMES`.
    """
    if recipe != "resize" and RECIPES[recipe].repeats_bodies:
        clips = [repeat_bodies(clip) for clip in clips]
    if frames is None:
        clips = [_at_most(clip, MAX_FRAMES) for clip in clips]
    padded, lengths = pad(clips)
    if recipe == "resize":
        padded = preprocess(padded, lengths, "ntu", frames, align=align)
    else:
        padded = RECIPES[recipe].change(padded)
        if frames is not None:
            padded = RECIPES[recipe].to_frames(padded, lengths, frames)
    if frames is not None:
        return padded, torch.full_like(lengths, frames)
    return torch.nn.functional.pad(padded, (0, 0, 0, 0, 0, MAX_FRAMES - padded.shape[2])), lengths


def _at_most(clip: Tensor, frames: int) -> Tensor:
    if clip.shape[1] <= frames:
        return clip
    return resize(clip[None], torch.tensor([clip.shape[1]]), frames)[0]
