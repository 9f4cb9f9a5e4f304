"""Momentum (exponential moving average) update of a list of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def ema_update_(targets: Iterable[Tensor], sources: Iterable[Tensor], momentum: float) -> None:
    """Moves every target towards its source, in place and in one call for all.

    ``target = momentum * target + (1 - momentum) * source``, computed in float32 for dtypes below it. Tensors that are
    not floating point (a counter of batches) are copied. Parameters that require grad are taken; nothing is recorded.

    Args:
        targets: what is updated, e.g. the parameters of the key encoder.
        sources: as many tensors of the same shapes, dtypes and devices.
        momentum: from 0 (copy) to 1 (keep), a Python number.

    Raises:
        TypeError: an entry is no tensor, or ``momentum`` no number.
        ValueError: the lists differ in length; a pair differs in shape, dtype or device, or elements of a target share
            memory (the message names its index); or ``momentum`` lies outside 0..1.

    The update of MoCo's key encoder (He et al. 2020, ``_momentum_update_key_encoder``) and of every EMA teacher.
    """
    if isinstance(momentum, bool) or not isinstance(momentum, int | float):
        raise TypeError(f"momentum: expected a number, got {type(momentum).__name__}")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected a number from 0 to 1, got {momentum}")
    moving, origins = list(targets), list(sources)
    if len(moving) != len(origins):
        raise ValueError(f"sources: expected {len(moving)} tensors as targets has, got {len(origins)}")
    all_floating = True
    for i, (target, source) in enumerate(zip(moving, origins, strict=True)):
        _check_pair(i, target, source)
        all_floating = all_floating and target.is_floating_point()
    with torch.no_grad():
        if not all_floating:
            for target, source in zip(moving, origins, strict=True):
                if not target.is_floating_point():
                    target.copy_(source)
            moving = [tensor for tensor in moving if tensor.is_floating_point()]
            origins = [tensor for tensor in origins if tensor.is_floating_point()]
        if moving:
            # torch's own multi-tensor kernel: on every device at the speed of memory, with the cost of one call.
            torch._foreach_lerp_(moving, origins, 1.0 - momentum)


def _check_pair(i: int, target: Any, source: Any) -> None:
    for name, value in (("targets", target), ("sources", source)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}[{i}]: expected a tensor, got {type(value).__name__}")
    if target.shape != source.shape or target.dtype is not source.dtype or target.device != source.device:
        expected, got = (f"{tuple(x.shape)} of {x.dtype} on {x.device}" for x in (target, source))
        raise ValueError(f"sources[{i}]: expected shape {expected} as targets[{i}], got {got}")
    if not target.is_contiguous() and 0 in target.stride():
        raise ValueError(f"targets[{i}]: expected a tensor whose elements do not share memory, got an expanded one")
