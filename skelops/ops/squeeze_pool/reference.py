"""squeeze_pool in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _weights(x: Tensor, T: int, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Which frames are valid (B, 1, T, 1), and one over their number (B, 1, 1, 1), 0 where there is none."""
    valid = torch.arange(T, device=x.device) < lengths[:, None]
    count = valid.sum(1).to(x.dtype)
    inverse = torch.where(count > 0, 1 / count, 0)
    return valid[:, None, :, None], inverse[:, None, None, None]


def squeeze_pool(x: Tensor, lengths: Tensor | None, bodies: int) -> tuple[Tensor, Tensor, Tensor]:
    T = x.shape[2]
    if lengths is None:
        parts = x.mean(3), x.mean(2), x.mean((2, 3))
    else:
        valid, inverse = _weights(x, T, lengths)
        # where, not a product: what lies behind the last valid frame may be NaN.
        kept = torch.where(valid, x, 0)
        parts = kept.mean(3), (kept.sum(2, keepdim=True) * inverse)[:, :, 0], (kept.mean(3).sum(2) * inverse[..., 0, 0])
    if bodies == 1:
        return parts
    frames, joints, mean = (part.unflatten(0, (-1, bodies)).mean(1) for part in parts)
    return frames, joints, mean


def squeeze_pool_backward(
    frames: Tensor, joints: Tensor, mean: Tensor, lengths: Tensor | None, bodies: int, channels_last: bool
) -> Tensor:
    T, V = frames.shape[2], joints.shape[2]
    parts = [part.repeat_interleave(bodies, 0) / bodies for part in (frames, joints, mean)] if bodies > 1 else None
    frames, joints, mean = parts or (frames, joints, mean)
    frames, joints, mean = frames[..., None] / V, joints[:, :, None], mean[..., None, None] / V
    if lengths is None:
        return frames + (joints + mean) / T
    valid, inverse = _weights(frames, T, lengths)
    return torch.where(valid, frames + (joints + mean) * inverse, 0)
