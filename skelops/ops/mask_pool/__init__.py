"""Means of a feature map inside and outside a mask, read once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from skelops._checks import Shapes, not_empty, one_of, same_device
from skelops._layout import empty_map, is_channels_last
from skelops._op import Op
from skelops.ops.mask_pool import reference

DIVISORS = ("mask", "size")


class MaskPool(NamedTuple):
    """What `mask_pool` returns.

    Attributes:
        inside: mean inside the mask (B, C).
        outside: mean outside the mask (B, C).
    """

    inside: Tensor
    outside: Tensor


def mask_pool(x: Tensor, mask: Tensor, divide_by: str = "mask") -> MaskPool:
    """Means of a feature map inside and outside a mask, from one read of the map.

    With ``m`` the mask broadcast to the shape of ``x``, and sums over frames and joints::

        divide_by="mask":  inside = sum(x * m) / sum(m),  outside = sum(x * (1 - m)) / sum(1 - m)
        divide_by="size":  inside = sum(x * m) / (T * V), outside = sum(x * (1 - m)) / (T * V)

    A side whose ``sum`` of the mask is zero has mean 0 and no gradient. The products are those of the formula: a NaN or
    an infinity in ``x`` reaches both sides, also where the mask leaves it out. Sums are accumulated in float32 for
    float32 and bfloat16. The gradient to a floating mask includes that of the denominators.

    Args:
        x: feature map (B, C, T, V), contiguous or channels_last (other strides are copied once).
        mask: bool, or floating with the dtype of ``x``, with one of these shapes:
            (T, V), shared by all rows;
            (N, T, V) with B a multiple of N, shared by the B / N consecutive rows (bodies) of a clip;
            (B, C, T, V), per channel, in either memory format (fastest in that of ``x``).
        divide_by: "mask" (SkeleMixCLR) or "size" (SkeAttnCLR, where inside + outside is the plain mean).

    Returns:
        `MaskPool` with the dtype of ``x``.

    Raises:
        TypeError: ``x`` is no floating-point tensor, or ``mask`` neither bool nor of the dtype of ``x``.
        ValueError: shapes or devices do not fit together, B is no multiple of N, a map is without channels, frames
            or joints, or ``divide_by`` is unknown.

    The trimmed and truncated views of SkeleMixCLR (`_mask_pool`) and the salient and non-salient features of SkeAttnCLR
    (`_mask_pooling`, whose mask (B, T * V, C) is a channels_last one here).
    """
    shapes = Shapes()
    shapes.check("x", x, "B C T V")
    shapes.check("mask", mask, "T V", "N T V", "B C T V", dtype="bool or float")
    same_device(x=x, mask=mask)
    if mask.dtype != x.dtype and mask.dtype != torch.bool:
        raise TypeError(f"mask: expected torch.bool or {x.dtype} as x, got {mask.dtype}")
    not_empty("x", x)
    B = shapes["B"]
    if mask.dim() == 3 and B != 0 and (mask.shape[0] == 0 or B % mask.shape[0]):
        raise ValueError(f"mask: expected a number of masks N that divides B={B}, got {mask.shape[0]}")
    one_of("divide_by", divide_by, DIVISORS)
    return MaskPool(*_op(x, mask, divide_by == "size"))


def _outputs(x: Tensor, mask: Tensor, by_size: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])


def _backward_outputs(inside: Tensor, outside: Tensor, mask: Tensor, by_size: bool, channels_last: bool) -> Tensor:
    return empty_map(inside, (*inside.shape, *mask.shape[-2:]), channels_last)


def _backward_mask_outputs(
    grad_inside: Tensor, grad_outside: Tensor, inside: Tensor, outside: Tensor, x: Tensor, mask: Tensor, by_size: bool
) -> Tensor:
    return empty_map(mask, mask.shape, mask.dim() == 4 and is_channels_last(mask))


_op = Op(
    "mask_pool(Tensor x, Tensor mask, bool by_size) -> (Tensor, Tensor)",
    reference=reference.mask_pool,
    outputs=_outputs,
)
_op_backward = Op(
    "mask_pool_backward(Tensor inside, Tensor outside, Tensor mask, bool by_size, bool channels_last) -> Tensor",
    reference=reference.mask_pool_backward,
    outputs=_backward_outputs,
)
_op_backward_mask = Op(
    "mask_pool_backward_mask(Tensor grad_inside, Tensor grad_outside, Tensor inside, Tensor outside, Tensor x,"
    " Tensor mask, bool by_size) -> Tensor",
    reference=reference.mask_pool_backward_mask,
    outputs=_backward_mask_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, mask, ctx.by_size = inputs
    ctx.channels_last = is_channels_last(x)
    # The gradient of x needs the mask alone.
    ctx.save_for_backward(mask, *((x, *output) if ctx.needs_input_grad[1] else ()))


def _backward(ctx: Any, inside: Tensor, outside: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    mask, *rest = ctx.saved_tensors
    grad_x = grad_mask = None
    if ctx.needs_input_grad[0]:
        grad_x = _op_backward(inside, outside, mask, ctx.by_size, ctx.channels_last)
    if ctx.needs_input_grad[1]:
        x, *means = rest
        grad_mask = _op_backward_mask(inside, outside, *means, x, mask, ctx.by_size)
    return grad_x, grad_mask, None


_op.differentiable(_setup_context, _backward)
_op_backward.not_differentiable()
_op_backward_mask.not_differentiable()
