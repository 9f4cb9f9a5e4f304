"""Random views of a clip: what training steps are made of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .._checks import positive_integer
from ..data.transforms import random_crop, random_frames, random_shear, resize, unit_box

#: The plane that a rotation about an axis turns, first towards second.
_PLANES = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}


def _check(clips: Tensor) -> None:
    if clips.dim() != 5 or clips.shape[1] != 3:
        raise ValueError(f"clips: expected shape (N, 3, T, V, M), got {tuple(clips.shape)}")


def uniform(clips: Tensor, generator: Generator | None, *sizes: int) -> Tensor:
    """Numbers from U(0, 1) for every clip, (N, *sizes)."""
    return torch.rand(len(clips), *sizes, generator=generator, device=clips.device, dtype=clips.dtype)


def _symmetric(clips: Tensor, generator: Generator | None, amplitude: float) -> Tensor:
    """A number from U(-amplitude, amplitude) for every clip, (N,)."""
    return (2 * uniform(clips, generator) - 1) * amplitude


def rotate(clips: Tensor, angle: Tensor, axis: str) -> Tensor:
    """Rotate every clip (N, 3, T, V, M) about an axis through the origin (y is vertical) by its angle (N,) in radians,
    y towards z about x, z towards x about y, x towards y about z.

    Raises:
        ValueError: the channels are not x, y, z, or ``axis`` is none of "x", "y", "z".
    """
    _check(clips)
    if axis not in _PLANES:
        raise ValueError(f"axis: expected x, y or z, got {axis!r}")
    first, second = _PLANES[axis]
    cosine, sine = (value[:, None, None, None] for value in (angle.cos(), angle.sin()))
    turned = list(clips.unbind(1))
    turned[first] = cosine * clips[:, first] - sine * clips[:, second]
    turned[second] = cosine * clips[:, second] + sine * clips[:, first]
    return torch.stack(turned, 1)


def random_rotation(
    clips: Tensor, generator: Generator | None = None, degrees: float = 180.0, axis: str = "y"
) -> Tensor:
    """Rotate every clip (N, 3, T, V, M) about an axis through the origin (y is vertical) by an angle from
    U(-degrees, degrees).

    Raises:
        ValueError: the channels are not x, y, z, ``degrees`` is negative, or ``axis`` is none of "x", "y", "z".
    """
    if degrees < 0:
        raise ValueError(f"degrees: expected at least 0, got {degrees}")
    return rotate(clips, _symmetric(clips, generator, math.radians(degrees)), axis)


def random_scale(clips: Tensor, generator: Generator | None = None, amplitude: float = 0.5) -> Tensor:
    """Multiply every clip (N, 3, T, V, M) by a factor from U(1 - amplitude, 1 + amplitude).

    Raises:
        ValueError: the channels are not x, y, z, or ``amplitude`` is not from 0 to 1.
    """
    _check(clips)
    if not 0 <= amplitude <= 1:
        raise ValueError(f"amplitude: expected 0 to 1, got {amplitude}")
    return clips * (1 + _symmetric(clips, generator, amplitude)[:, None, None, None, None])


def random_crop_resize(
    clips: Tensor,
    lengths: Tensor,
    frames: int,
    generator: Generator | None = None,
    ratio: tuple[float, float] = (0.1, 1.0),
) -> Tensor:
    """A run of every clip's frames, resized to ``frames``: its length is a share of the clip's from U(ratio), but at
    least ``frames`` where the clip has so many, and its start is drawn uniformly.

    Args:
        clips: (N, C, T, V, M). lengths: (N,) integers from 1 to T.

    Raises:
        ValueError: ``frames`` is no positive integer, ``lengths`` does not fit the clips, or ``ratio`` is no range of
            shares.
    """
    positive_integer("frames", frames)
    if not 0 <= ratio[0] <= ratio[1] <= 1:
        raise ValueError(f"ratio: expected 0 <= least <= largest <= 1, got {ratio}")
    share = ratio[0] + (ratio[1] - ratio[0]) * uniform(clips, generator)
    length = (lengths * share).long().clamp(min=frames).minimum(lengths)
    start = (uniform(clips, generator).double() * (lengths - length + 1)).long()
    return resize(clips, length, frames, start)


class Views(ABC):
    """A distribution of views of a clip."""

    @abstractmethod
    def __call__(self, clips: Tensor, generator: Generator | None = None, lengths: Tensor | None = None) -> Tensor:
        """One view of every clip (N, 3, T, V, M), of which the first ``lengths`` (N,) frames count, None for all."""


@dataclass(frozen=True)
class RandomViews(Views):
    """Draws a view: rotations about the vertical axis, x and z, scale, unit box, frames, crop, shear, in this order;
    0 leaves a step out.

    Args:
        rotation: largest angle about the vertical axis, in degrees.
        tilt: largest angle about the x axis, in degrees.
        scale: a clip is multiplied by a factor from U(1 - scale, 1 + scale).
        box: whether every axis is stretched to [-1, 1] then, which takes the scale out again, as released.
        frames: how many of a clip's frames are drawn at random and kept in their order; with ``share``, how many
            frames a run of them is resized to.
        crop: a clip is padded by T // crop mirrored frames at both ends and cut back to T frames; 0 for no crop.
        shear: largest off-diagonal of the shear matrix.
        roll: largest angle about the z axis, in degrees.
        share: the least share of a clip's frames in a run (`random_crop_resize`); 0 draws frames one by one.
        replace: whether frames are drawn with replacement, or without (`random_frames`).

    Crop 6 and shear 0.5 are those of SkeletonCLR and its descendants (methods such as SkeleMixCLR, SkeAttnCLR).
    ``RandomViews(60, 60, 0.5, True, 52, 0, 0)`` are the training clips of CTR-GCN's feeder for NW-UCLA (which draws
    whole degrees, and frames without replacement from a hundred copies of each); ``RandomViews(17.19, 17.19, frames=64,
    crop=0, shear=0, roll=17.19, share=0.5)`` those of its feeder for NTU, and of STD-CL (which turn about x first).
    """

    rotation: float = 0.0
    tilt: float = 0.0
    scale: float = 0.0
    box: bool = False
    frames: int = 0
    crop: int = 6
    shear: float = 0.5
    roll: float = 0.0
    share: float = 0.0
    replace: bool = True

    def __post_init__(self) -> None:
        for name in ("rotation", "tilt", "scale", "frames", "crop", "shear", "roll", "share"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("scale", "share"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        if (self.share or not self.replace) and not self.frames:
            raise ValueError("frames: expected at least 1 with share or without replacement, got 0")

    def __call__(self, clips: Tensor, generator: Generator | None = None, lengths: Tensor | None = None) -> Tensor:
        """One view of every clip (N, 3, T, V, M); the generator is of the clips' device.

        Args:
            lengths: (N,) integers, frames of every clip, of which ``frames`` are drawn; None means all T.
        """
        for axis, degrees in (("y", self.rotation), ("x", self.tilt), ("z", self.roll)):
            if degrees:
                clips = random_rotation(clips, generator, degrees, axis)
        if self.scale:
            clips = random_scale(clips, generator, self.scale)
        if self.box:
            clips = unit_box(clips)
        if self.frames:
            if lengths is None:
                lengths = torch.full((len(clips),), clips.shape[2], device=clips.device)
            if self.share:
                clips = random_crop_resize(clips, lengths, self.frames, generator, (self.share, 1))
            else:
                clips = random_frames(clips, lengths, self.frames, generator, self.replace)
        if self.crop:
            clips = random_crop(clips, generator, self.crop)
        if self.shear:
            clips = random_shear(clips, generator, self.shear)
        return clips
