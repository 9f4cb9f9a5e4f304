"""multi_scale_conv by the references of its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skelops._stats import empty_sums
from skelops.ops.multi_scale_conv import composed
from skelops.ops.temporal_conv import reference as temporal_conv
from skelops.ops.temporal_max_pool import reference as temporal_max_pool


def _kernel(name: str) -> Callable[..., None]:
    """The reference of an op, its results copied to where they are wanted."""
    reference = getattr(temporal_max_pool if "pool" in name else temporal_conv, name)

    def run(*args: Any) -> None:
        for output, result in zip(args[-1], reference(*args[:-1]), strict=False):
            if output.numel():
                output.copy_(result)

    return run


def multi_scale_conv(narrow: Tensor, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    stride, stats = others[-2:]
    B, _, T, V = x.shape
    channels = (weight.shape[0] + 2) * weight.shape[1]
    y = x.new_empty(B, channels, (T + stride - 1) // stride, V)
    outputs = [y, *empty_sums(y, stats)]
    composed.forward(_kernel)(narrow, x, weight, *others, outputs)
    return tuple(outputs)


def multi_scale_conv_backward(
    grad: Tensor, narrow: Tensor, x: Tensor, weight: Tensor, plain_weight: Tensor, scale: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    G, W = weight.shape[:2]
    outputs = [
        torch.empty_like(narrow),
        torch.empty_like(x),
        torch.empty_like(weight),
        weight.new_empty(G, W),
        torch.empty_like(plain_weight),
        weight.new_empty(W),
        torch.empty_like(scale),
        torch.empty_like(scale),
    ]
    composed.backward(_kernel)(grad, narrow, x, weight, plain_weight, scale, *others, outputs)
    return tuple(outputs)
