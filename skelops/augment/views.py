"""Random views of a clip: what the query and the key of a contrastive step are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..data.transforms import random_crop, random_shear


def random_rotation(clips: Tensor, generator: Generator | None = None, degrees: float = 180.0) -> Tensor:
    """Rotate every clip (N, 3, T, V, M) about the vertical axis y by an angle from U(-degrees, degrees).

    Raises:
        ValueError: the channels are not x, y, z, or ``degrees`` is negative.
    """
    if clips.dim() != 5 or clips.shape[1] != 3:
        raise ValueError(f"clips: expected shape (N, 3, T, V, M), got {tuple(clips.shape)}")
    if degrees < 0:
        raise ValueError(f"degrees: expected at least 0, got {degrees}")
    uniform = torch.rand(len(clips), generator=generator, device=clips.device, dtype=clips.dtype)
    angle = ((2 * uniform - 1) * math.radians(degrees))[:, None, None, None]
    x, y, z = clips.unbind(1)
    return torch.stack([angle.cos() * x + angle.sin() * z, y, angle.cos() * z - angle.sin() * x], 1)


@dataclass(frozen=True)
class RandomViews:
    """Draws a view: rotation about the vertical axis, temporal crop, shear, in this order; 0 leaves a step out.

    Args:
        rotation: largest angle about the vertical axis, in degrees.
        crop: a clip is padded by T // crop mirrored frames at both ends and cut back to T frames; 0 for no crop.
        shear: largest off-diagonal of the shear matrix.

    Crop 6 and shear 0.5 are those of SkeletonCLR and its descendants (methods such as SkeleMixCLR, SkeAttnCLR).
    """

    rotation: float = 0.0
    crop: int = 6
    shear: float = 0.5

    def __post_init__(self) -> None:
        for name in ("rotation", "crop", "shear"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")

    def __call__(self, clips: Tensor, generator: Generator | None = None) -> Tensor:
        """One view of every clip (N, 3, T, V, M); the generator is of the clips' device."""
        if self.rotation:
            clips = random_rotation(clips, generator, self.rotation)
        if self.crop:
            clips = random_crop(clips, generator, self.crop)
        if self.shear:
            clips = random_shear(clips, generator, self.shear)
        return clips
