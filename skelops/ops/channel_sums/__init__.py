"""Sum and sum of squares of every channel of a map, from one read."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from skelops._checks import Shapes, not_empty
from skelops._op import Op
from skelops.ops.channel_sums import reference
from skelops.ops.norm_act import norm_act


class ChannelSums(NamedTuple):
    """What `channel_sums` returns.

    Attributes:
        sum: (C,), float64.
        square_sum: (C,), float64.
    """

    sum: Tensor
    square_sum: Tensor


def channel_sums(x: Tensor) -> ChannelSums:
    """What BatchNorm must know of a map, for maps that no op made with ``stats=True``.

    ::

        sum[c] = sum_{b,t,v} x[b,c,t,v],    square_sum[c] = sum_{b,t,v} x[b,c,t,v]^2

    Args:
        x: feature map (B, C, T, V), contiguous or channels_last (there also a slice of the channels of a wider map).

    Returns:
        `ChannelSums`, float64 whatever the dtype of ``x``; differentiable.

    Raises:
        TypeError: ``x`` is no floating-point tensor.
        ValueError: ``x`` has not four dimensions, or is without channels, frames or joints.
    """
    Shapes().check("x", x, "B C T V")
    not_empty("x", x)
    return ChannelSums(*_op(x))


def _outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    C = x.shape[1]
    return x.new_empty(C, dtype=torch.float64), x.new_empty(C, dtype=torch.float64)


_op = Op("channel_sums(Tensor x) -> (Tensor, Tensor)", reference=reference.channel_sums, outputs=_outputs)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_sum: Tensor | None, grad_square_sum: Tensor | None) -> Tensor | None:
    (x,) = ctx.saved_tensors
    wide = torch.promote_types(x.dtype, torch.float32)
    if grad_square_sum is None:
        return None if grad_sum is None else grad_sum.to(x.dtype)[:, None, None].expand_as(x)
    scale = (2 * grad_square_sum).to(wide)
    shift = torch.zeros_like(scale) if grad_sum is None else grad_sum.to(wide)
    return norm_act(x, scale, shift, negative_slope=1.0)


_op.differentiable(_setup_context, _backward)
