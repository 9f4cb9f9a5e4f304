"""Max-pooling over three frames of a normalised and activated map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skelops._checks import Shapes, affine_dtype, not_empty, positive_integer, same_device
from skelops._layout import empty_map, is_channels_last
from skelops._op import Op
from skelops._stats import MapStats, empty_sums, used_sums
from skelops.ops.temporal_max_pool import reference


def temporal_max_pool(
    x: Tensor, scale: Tensor, shift: Tensor, *, stride: int = 1, stats: bool = False
) -> Tensor | MapStats:
    """The largest of three frames of ``relu(scale * x + shift)``.

    ::

        y[b,c,t,v] = max_{i in -1, 0, 1} relu(scale[c] x[b,c,t*stride + i,v] + shift[c])    frames outside are left out

    The activated map is never stored, nor are the places of the maxima: gradients find them again, the first where
    several frames are equal. A NaN is above all numbers, of several the last, as in PyTorch.

    Args:
        x: feature map (B, C, T, V), contiguous or channels_last (there also a slice of the channels of a wider map);
            the output and the gradient keep the format.
        scale, shift: (C,) float32 (float64 for a float64 map), as `skelops.batch_norm_affine` gives them.
        stride: every stride-th frame is computed: ceil(T / stride) frames.
        stats: also return the sum and the sum of squares of every channel, from the same pass.

    Returns:
        y (B, C, ceil(T / stride), V) in the dtype of ``x``, or `MapStats` with float64 sums; differentiable.

    Raises:
        TypeError: an argument is no floating-point tensor, or ``scale`` and ``shift`` are not
            float32 (float64 for a float64 map).
        ValueError: shapes or devices do not fit together, the map is without channels, frames or joints, or ``stride``
            is no positive integer.

    The pooled branch of the multi-scale temporal convolutions of MS-G3D and CTR-GCN.
    """
    shapes = Shapes()
    shapes.check("x", x, "B C T V")
    not_empty("x", x)
    shapes.check("scale", scale, "C")
    shapes.check("shift", shift, "C")
    positive_integer("stride", stride)
    same_device(x=x, scale=scale, shift=shift)
    affine_dtype(x, scale=scale, shift=shift)
    output, total, square_sum = _op(x, scale, shift, stride, stats)
    return MapStats(output, total, square_sum) if stats else output


def _outputs(x: Tensor, scale: Tensor, shift: Tensor, stride: int, stats: bool) -> tuple[Tensor, Tensor, Tensor]:
    B, C, T, V = x.shape
    y = empty_map(x, (B, C, (T + stride - 1) // stride, V), is_channels_last(x))
    return y, *empty_sums(y, stats)


def _backward_outputs(grad: Tensor, x: Tensor, scale: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_map(x, x.shape, is_channels_last(x)), torch.empty_like(scale), torch.empty_like(scale)


_op = Op(
    "temporal_max_pool(Tensor x, Tensor scale, Tensor shift, int stride, bool stats) -> (Tensor, Tensor, Tensor)",
    reference=reference.temporal_max_pool,
    outputs=_outputs,
)
_op_backward = Op(
    "temporal_max_pool_backward(Tensor grad, Tensor x, Tensor scale, Tensor shift, Tensor? grad_sum,"
    " Tensor? grad_square_sum, int stride) -> (Tensor, Tensor, Tensor)",
    reference=reference.temporal_max_pool_backward,
    outputs=_backward_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, scale, shift, ctx.stride, ctx.stats = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, scale, shift)


def _backward(
    ctx: Any, grad: Tensor | None, grad_sum: Tensor | None, grad_square_sum: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, scale, shift = ctx.saved_tensors
    if grad is None:
        B, C, T, V = x.shape
        grad = x.new_zeros(B, C, (T + ctx.stride - 1) // ctx.stride, V)
    # The maxima are found again: of y no more is needed than whether its sums were asked for.
    _, *of_sums = used_sums(x if ctx.stats else None, grad_sum, grad_square_sum)
    results = _op_backward(grad, x, scale, shift, *of_sums, ctx.stride)
    needs = ctx.needs_input_grad[:3]
    return (*(result if need else None for result, need in zip(results, needs, strict=True)), None, None)


_op.differentiable(_setup_context, _backward)
_op.autocast(keep=("scale", "shift"))
_op_backward.not_differentiable()
