"""Temporal convolution: a convolution along frames, with the neighbouring normalisations in its passes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from skelops._checks import Shapes, affine_dtype, has_elements, not_empty, positive_integer, same_device, same_dtype
from skelops._layout import empty_map, is_channels_last
from skelops._op import Op
from skelops._stats import MapStats, empty_sums, used_sums
from skelops.ops.temporal_conv import reference


def temporal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    stats: bool = False,
) -> Tensor | MapStats:
    """Convolution along the frames of a map, "same" padding, optionally of ``relu(scale * x + shift)``.

    ::

        y[b,o,t,v] = bias[o] + sum_c sum_i weight[o,c,i] a(x[b,c, t*stride + (i - k//2)*dilation, v])
        a(x) = x, or relu(scale[c] x + shift[c]) with scale and shift; zero outside the frames in both cases

    The activated map is never stored; gradients recompute it. Sums are accumulated in float32 for float32, bfloat16 and
    float16. ``x``, ``weight``, ``bias``, ``scale`` and ``shift`` have gradients.

    On the CPU, float32 convolutions of 32 channels and more (16 with 9 taps) with neither dilation nor groups, of 3 to
    9 taps or, with a stride of two, of 7 and 9, are filtered minimally (Winograd's F(2,3) and F(3,3), nested): about
    half of the products or less, and an error of the same order. A value that is not finite then makes up to five more
    frames not finite on either side of those that it reaches.

    Args:
        x: feature map (B, C, T, V), contiguous or channels_last, there also a slice of the channels of a wider map
            (other strides are copied once); the output and the gradient keep the format and are dense.
        weight: (O, C / groups, k), k = 1, 3, 5, 7 or 9.
        bias: (O,), or None.
        scale, shift: (C,) float32 (float64 for a float64 map), both or none: a normalisation applied while loading,
            followed by ReLU. Autocast leaves them alone.
        stride: every stride-th frame is computed: ceil(T / stride) frames.
        dilation: frames between two taps.
        groups: output channels o*O/groups to (o+1)*O/groups read input channels o*C/groups to (o+1)*C/groups.
        stats: also return the sum and the sum of squares of every output channel, from the same pass: what BatchNorm
            needs. Both are differentiable.

    Returns:
        y (B, O, ceil(T / stride), V) in the dtype of ``x``, or `MapStats` with float64 sums.

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes or devices do not fit together, the map is without channels, frames or joints, the weight
            without elements, k is even or above 9, stride, dilation or groups is no positive integer, groups does not
            divide the channels, or only one of ``scale`` and ``shift`` is given.

    The temporal convolution of ST-GCN (AAAI 2018, released as ``tcn``), 2s-AGCN, and of the branches of CTR-GCN; with
    k = 1 any pointwise convolution.
    """
    shapes = Shapes()
    shapes.check("x", x, "B C T V")
    not_empty("x", x)
    for name, value in (("stride", stride), ("dilation", dilation), ("groups", groups)):
        positive_integer(name, value)
    shapes.check("weight", weight, "O C/groups k")
    has_elements("weight", weight)
    (O, channels, k), C = weight.shape, shapes["C"]
    if channels * groups != C or O % groups:
        raise ValueError(
            f"weight: expected shape (O, C/groups, k) with C={C} and O divisible by groups={groups}, "
            f"got {tuple(weight.shape)}"
        )
    if k not in (1, 3, 5, 7, 9):
        raise ValueError(f"weight: expected 1, 3, 5, 7 or 9 taps, got {k}")
    if bias is not None:
        shapes.check("bias", bias, "O")
    if scale is not None and shift is not None:
        shapes.check("scale", scale, "C")
        shapes.check("shift", shift, "C")
        affine_dtype(x, scale=scale, shift=shift)
    elif scale is not None or shift is not None:
        given, missing = ("scale", "shift") if shift is None else ("shift", "scale")
        raise ValueError(f"{missing}: expected a tensor (C,) beside {given}, got None")
    same_device(x=x, weight=weight, bias=bias, scale=scale, shift=shift)
    same_dtype(x=x, weight=weight, bias=bias)
    output, total, square_sum = _op(x, weight, bias, scale, shift, stride, dilation, groups, stats)
    return MapStats(output, total, square_sum) if stats else output


def _outputs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    stride: int,
    dilation: int,
    groups: int,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, _, T, V = x.shape
    O = weight.shape[0]
    y = empty_map(x, (B, O, (T + stride - 1) // stride, V), is_channels_last(x))
    return y, *empty_sums(y, stats)


def _backward_outputs(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    y: Tensor | None,
    grad_sum: Tensor | None,
    grad_square_sum: Tensor | None,
    stride: int,
    dilation: int,
    groups: int,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
    needs_affine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_x = empty_map(x, x.shape, is_channels_last(x)) if needs_x else x.new_empty(0)
    affine = (scale if scale is not None else x).new_empty
    n = x.shape[1] if needs_affine else 0
    return (
        grad_x,
        weight.new_empty(weight.shape if needs_weight else 0),
        weight.new_empty(weight.shape[0] if needs_bias else 0),
        affine(n),
        affine(n),
    )


_op = Op(
    "temporal_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, int stride, int dilation,"
    " int groups, bool stats) -> (Tensor, Tensor, Tensor)",
    reference=reference.temporal_conv,
    outputs=_outputs,
    weights=("weight", "bias"),
)
_op_backward = Op(
    "temporal_conv_backward(Tensor grad, Tensor x, Tensor weight, Tensor? scale, Tensor? shift, Tensor? y,"
    " Tensor? grad_sum, Tensor? grad_square_sum, int stride, int dilation, int groups, bool needs_x,"
    " bool needs_weight, bool needs_bias, bool needs_affine) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.temporal_conv_backward,
    outputs=_backward_outputs,
    weights=("weight", "bias"),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, scale, shift, *ctx.form, stats = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, scale, shift, output[0] if stats else None)


def _backward(
    ctx: Any, grad: Tensor | None, grad_sum: Tensor | None, grad_square_sum: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, weight, scale, shift, y = ctx.saved_tensors
    stride, dilation, groups = ctx.form
    if grad is None:
        B, _, T, V = x.shape
        grad = x.new_zeros(B, weight.shape[0], (T + stride - 1) // stride, V)
    needs_x, needs_weight, needs_bias, needs_scale, needs_shift = ctx.needs_input_grad[:5]
    grad_x, grad_weight, grad_bias, grad_scale, grad_shift = _op_backward(
        grad,
        x,
        weight,
        scale,
        shift,
        *used_sums(y, grad_sum, grad_square_sum),
        stride,
        dilation,
        groups,
        needs_x,
        needs_weight,
        needs_bias,
        needs_scale or needs_shift,
    )
    return (
        grad_x if needs_x else None,
        grad_weight if needs_weight else None,
        grad_bias if needs_bias else None,
        grad_scale if needs_scale else None,
        grad_shift if needs_shift else None,
        *(None,) * 4,
    )


_op.differentiable(_setup_context, _backward)
_op.autocast(keep=("scale", "shift"))
_op_backward.not_differentiable()
