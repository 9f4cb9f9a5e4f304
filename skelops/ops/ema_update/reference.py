"""ema_update_ in eager PyTorch."""

from __future__ import annotations

from torch import Tensor

from skelops.ops.queue_attention.reference import working_dtype


def ema_update_(targets: list[Tensor], sources: list[Tensor], momentum: float) -> None:
    for target, source in zip(targets, sources, strict=True):
        dtype = working_dtype(target)
        target.copy_(momentum * target.to(dtype) + (1 - momentum) * source.to(dtype))
