"""channel_sums in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.float64)
    return wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))
