"""Views of SCD-Net: cropped, resized, turned, flipped and sheared clips, with joints and frames masked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Generator, Tensor

from .._checks import positive_integer
from ..data.transforms import random_shear
from ..graphs import Layout, adjacency, get_layout
from .views import Views, random_crop_resize, rotate, uniform

#: Segments of a clip that `temporal_mask` tells apart, as released.
SEGMENTS = 16


@cache
def _mirrored(layout: Layout, device: torch.device) -> Tensor:
    """The joint that takes the place of each in `flip`, (V,); kept, as a copy from the host waits for the device."""
    return torch.tensor(layout.flip, device=device)


@cache
def _two_steps(layout: Layout, device: torch.device) -> Tensor:
    """In how many ways two steps along bones, or none, lead from joint to joint, (V, V)."""
    near = (adjacency(layout, "agcn") > 0).any(0).float()
    return (near @ near).to(device)


def _up_to(name: str, value: int, most: int) -> None:
    """Refuses what is no integer from 0 to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{name}: expected 0 to {most}, got {value!r}")


def _fitting(layout: str | Layout, clips: Tensor) -> Layout:
    """The layout, whose joints are those of clips (N, C, T, V, M)."""
    layout = get_layout(layout)
    if clips.dim() != 5:
        raise ValueError(f"clips: expected shape (N, C, T, {layout.num_joints}, M), got {tuple(clips.shape)}")
    if clips.shape[3] != layout.num_joints:
        raise ValueError(
            f"clips: expected {layout.num_joints} joints as layout {layout.name} has, got {clips.shape[3]}"
        )
    return layout


def random_main_rotation(
    clips: Tensor, generator: Generator | None = None, degrees: float = 30.0, others: float = 1.0
) -> Tensor:
    """Rotate every clip (N, 3, T, V, M) about all three axes: about one of them, drawn at random, by an angle from
    U(0, degrees), about the other two from U(0, others).

    Raises:
        ValueError: the channels are not x, y, z, or an angle is negative.
    """
    for name, value in (("degrees", degrees), ("others", others)):
        if not value >= 0:
            raise ValueError(f"{name}: expected at least 0, got {value}")
    main = torch.randint(3, (len(clips), 1), generator=generator, device=clips.device)
    most = torch.where(torch.arange(3, device=clips.device) == main, degrees, others)
    angle = torch.deg2rad(uniform(clips, generator, 3) * most.to(clips.dtype))
    for axis, turn in zip("xyz", angle.unbind(1), strict=True):
        clips = rotate(clips, turn, axis)
    return clips


def flip(clips: Tensor, layout: str | Layout) -> Tensor:
    """Left and right joints change places; coordinates stay (released).

    Raises:
        ValueError: the clips have other joints than the layout.
    """
    return clips[:, :, :, _mirrored(_fitting(layout, clips), clips.device)]


def structural_mask(
    clips: Tensor, layout: str | Layout, generator: Generator | None = None, seeds: int = 5, masked: int = 8
) -> Tensor:
    """Zero ``masked`` joints of every clip in all frames and bodies: those that are most often reached by two steps
    along bones (or none) from ``seeds`` joints drawn with replacement; of equal ones the higher number.

    Raises:
        ValueError: the clips have other joints than the layout, ``seeds`` is no positive integer, or ``masked`` would
            leave no joint.

    Source: Wu et al., SCD-Net, structurally guided spatial masking (section 3.3).
    """
    layout = _fitting(layout, clips)
    positive_integer("seeds", seeds)
    _up_to("masked", masked, layout.num_joints - 1)
    chosen = torch.randint(layout.num_joints, (len(clips), seeds), generator=generator, device=clips.device)
    reached = _two_steps(layout, clips.device)[chosen].sum(1)
    order = reached.argsort(dim=1, stable=True)
    hidden = torch.zeros_like(reached, dtype=torch.bool).scatter_(1, order[:, layout.num_joints - masked :], True)
    return clips.masked_fill(hidden[:, None, None, :, None], 0)


def temporal_mask(
    clips: Tensor, generator: Generator | None = None, segments: int = SEGMENTS, masked: int = 6
) -> Tensor:
    """Cut every clip into segments of ceil(T / segments) frames, and zero ``masked`` of ``segments`` at random.

    Where T is no multiple of ``segments``, the last ones have fewer frames or none: 20 frames fill 10 of 16 segments
    with 2 each, so that of 6 that are drawn fewer may show.

    Raises:
        ValueError: ``segments`` is no positive integer, or ``masked`` would leave none.

    Source: Wu et al., SCD-Net, random temporal masking (section 3.3).
    """
    positive_integer("segments", segments)
    _up_to("masked", masked, segments - 1)
    hidden = uniform(clips, generator, segments).argsort(1).argsort(1) < masked
    frames = clips.shape[2]
    of_frame = torch.arange(frames, device=clips.device) // -(-frames // segments)
    return clips.masked_fill(hidden[:, of_frame][:, None, :, None, None], 0)


@dataclass(frozen=True)
class MaskedViews(Views):
    """Draws a view of SCD-Net: a crop resized to ``frames``, then each with probability one half and in this order:
    `random_main_rotation`, `flip`, a shear of U(-1, 1), `structural_mask`, `temporal_mask`.

    Args:
        layout: of the joints.
        frames: of a view.
        probability: of each step.
        degrees: largest angle about the main axis.
        shear: largest off-diagonal of the shear matrix.
        joints: joints that the structural mask hides.
        segments: of 16 parts of the clip, how many the temporal mask hides.
    """

    layout: str = "ntu"
    frames: int = 64
    probability: float = 0.5
    degrees: float = 30.0
    shear: float = 1.0
    joints: int = 8
    segments: int = 6

    def __post_init__(self) -> None:
        positive_integer("frames", self.frames)
        for name in ("degrees", "shear"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability: expected 0 to 1, got {self.probability}")
        _up_to("joints", self.joints, get_layout(self.layout).num_joints - 1)
        _up_to("segments", self.segments, SEGMENTS - 1)

    def __call__(self, clips: Tensor, generator: Generator | None = None, lengths: Tensor | None = None) -> Tensor:
        """One view of every clip (N, 3, T, V, M), (N, 3, frames, V, M); the generator is of the clips' device.

        Args:
            lengths: (N,) integers, frames of every clip; None means all T.

        Raises:
            ValueError: the clips have other joints than the layout.
        """
        _fitting(self.layout, clips)
        if lengths is None:
            lengths = torch.full((len(clips),), clips.shape[2], device=clips.device)
        view = random_crop_resize(clips, lengths, self.frames, generator)
        for changed in (
            lambda x: random_main_rotation(x, generator, self.degrees),
            lambda x: flip(x, self.layout),
            lambda x: random_shear(x, generator, self.shear),
            lambda x: structural_mask(x, self.layout, generator, masked=self.joints),
            lambda x: temporal_mask(x, generator, masked=self.segments),
        ):
            taken = uniform(view, generator) < self.probability
            view = torch.where(taken[:, None, None, None, None], changed(view), view)
        return view
