"""Momentum (exponential moving average) update of a list of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from skelops._op import Op
from skelops.ops.ema_update import reference


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
    moving, origins = _tensors("targets", targets), _tensors("sources", sources)
    if len(moving) != len(origins):
        raise ValueError(f"sources: expected {len(moving)} tensors as targets has, got {len(origins)}")
    wanted, found = ([(x.shape, x.dtype, x.device) for x in tensors] for tensors in (moving, origins))
    if wanted != found:
        i = [a == b for a, b in zip(wanted, found, strict=True)].index(False)
        expected, got = (f"{tuple(shape)} of {dtype} on {device}" for shape, dtype, device in (wanted[i], found[i]))
        raise ValueError(f"sources[{i}]: expected shape {expected} as targets[{i}], got {got}")
    for i, target in enumerate(moving):
        if not target.is_contiguous() and 0 in target.stride():
            raise ValueError(f"targets[{i}]: expected a tensor whose elements do not share memory, got an expanded one")
    with torch.no_grad():
        if not all([target.is_floating_point() for target in moving]):
            for target, source in zip(moving, origins, strict=True):
                if not target.is_floating_point():
                    target.copy_(source)
            moving = [tensor for tensor in moving if tensor.is_floating_point()]
            origins = [tensor for tensor in origins if tensor.is_floating_point()]
        if moving:
            _op(moving, origins, float(momentum))


def _tensors(name: str, values: Any) -> list[Tensor]:
    tensors = list(values)
    for i, value in enumerate(tensors):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}[{i}]: expected a tensor, got {type(value).__name__}")
    return tensors


_op = Op(
    "ema_update_(Tensor(a!)[] targets, Tensor[] sources, float momentum) -> ()",
    reference=reference.ema_update_,
    outputs=None,
)
