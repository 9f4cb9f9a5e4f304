"""The branches of a multi-scale temporal convolution, side by side in one map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from skelops import _native
from skelops._checks import Shapes, affine_dtype, has_elements, not_empty, positive_integer, same_device, same_dtype
from skelops._layout import empty_map, is_channels_last
from skelops._op import NATIVE, Op
from skelops._stats import MapStats, empty_sums, used_sums
from skelops.ops.multi_scale_conv import composed, reference


def multi_scale_conv(
    narrow: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    plain_weight: Tensor,
    plain_bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    dilations: Sequence[int],
    stride: int = 1,
    stats: bool = False,
) -> Tensor | MapStats:
    """Dilated convolutions, a max-pool and a 1x1 convolution, each into its share of the channels of one map.

    With G dilations, W channels to a branch and ``a = relu(scale * narrow + shift)``, cut into G + 1 parts::

        y_g   = temporal_conv(a_g, weight[g], bias[g], dilation=dilations[g], stride)     g < G
        y_G   = max of three frames of a_G                                                 (stride)
        y_G+1 = plain_weight x + plain_bias                                                (every stride-th frame)

    No branch has a map of its own beside the result, and ``a`` is never stored. All inputs have gradients.

    Args:
        narrow: what all but the last branch read, (B, (G + 1) W, T, V); contiguous or channels_last.
        x: what the last branch reads, (B, C, T, V).
        weight: (G, W, W, k), k odd up to 9; bias: (G, W).
        plain_weight: (W, C); plain_bias: (W,).
        scale, shift: ((G + 1) W,) float32 (float64 for float64 maps): the normalisation of ``narrow``.
        dilations: G frames between taps.
        stride: every stride-th frame is computed: ceil(T / stride) frames.
        stats: also return the sum and the sum of squares of every channel.

    Returns:
        y (B, (G + 2) W, ceil(T / stride), V) in the dtype and format of ``x``, or `MapStats` with float64 sums.

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes, devices or the number of dilations do not fit together, the maps are without channels,
            frames or joints, W is 0, k is even or above 9, or stride or one of the dilations is no positive integer.

    MultiScale_TemporalConv of MS-G3D (Liu et al., CVPR 2020) and CTR-GCN, after its first 1x1 convolutions.
    """
    shapes = Shapes()
    shapes.check("x", x, "B C T V")
    not_empty("x", x)
    shapes.check("weight", weight, "G W W k")
    G, W = weight.shape[:2]
    shapes.check("bias", bias, "G W")
    shapes.check("plain_weight", plain_weight, "W C")
    has_elements("plain_weight", plain_weight)
    shapes.check("plain_bias", plain_bias, "W")
    shapes.sizes["(G+1)W"] = (G + 1) * W
    shapes.check("narrow", narrow, "B (G+1)W T V")
    for name, part in (("scale", scale), ("shift", shift)):
        shapes.check(name, part, "(G+1)W")
    if len(dilations) != G:
        raise ValueError(f"dilations: expected {G} as weight has, got {len(dilations)}")
    for name, value in (("stride", stride), *(("dilations", dilation) for dilation in dilations)):
        positive_integer(name, value)
    if weight.shape[3] not in (1, 3, 5, 7, 9):
        raise ValueError(f"weight: expected 1, 3, 5, 7 or 9 taps, got {weight.shape[3]}")
    same_device(
        narrow=narrow, x=x, weight=weight, bias=bias, plain_weight=plain_weight, plain_bias=plain_bias, scale=scale,
        shift=shift,
    )  # fmt: skip
    affine_dtype(narrow, scale=scale, shift=shift)
    same_dtype(narrow=narrow, x=x, weight=weight, bias=bias, plain_weight=plain_weight, plain_bias=plain_bias)
    results = _op(narrow, x, weight, bias, plain_weight, plain_bias, scale, shift, list(dilations), stride, stats)
    return MapStats(*results) if stats else results[0]


def _outputs(narrow: Tensor, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    stride, stats = others[-2:]
    B, _, T, V = x.shape
    channels = (weight.shape[0] + 2) * weight.shape[1]
    y = empty_map(x, (B, channels, (T + stride - 1) // stride, V), is_channels_last(x))
    return y, *empty_sums(y, stats)


def _backward_outputs(
    grad: Tensor,
    narrow: Tensor,
    x: Tensor,
    weight: Tensor,
    plain_weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    *others: Any,
) -> tuple[Tensor, ...]:
    G, W = weight.shape[:2]
    return (
        empty_map(narrow, narrow.shape, is_channels_last(narrow)),
        empty_map(x, x.shape, is_channels_last(x)),
        weight.new_empty(weight.shape),
        weight.new_empty(G, W),
        weight.new_empty(plain_weight.shape),
        weight.new_empty(W),
        torch.empty_like(scale),
        torch.empty_like(scale),
    )


_op = Op(
    "multi_scale_conv(Tensor narrow, Tensor x, Tensor weight, Tensor bias, Tensor plain_weight, Tensor plain_bias,"
    " Tensor scale, Tensor shift, int[] dilations, int stride, bool stats) -> (Tensor, Tensor, Tensor)",
    reference=reference.multi_scale_conv,
    outputs=_outputs,
)
_op_backward = Op(
    "multi_scale_conv_backward(Tensor grad, Tensor narrow, Tensor x, Tensor weight, Tensor plain_weight, Tensor scale,"
    " Tensor shift, Tensor? y, Tensor? grad_sum, Tensor? grad_square_sum, int[] dilations, int stride)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.multi_scale_conv_backward,
    outputs=_backward_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    narrow, x, weight, _, plain_weight, _, scale, shift, ctx.dilations, ctx.stride, stats = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(narrow, x, weight, plain_weight, scale, shift, output[0] if stats else None)


def _backward(
    ctx: Any, grad: Tensor | None, grad_sum: Tensor | None, grad_square_sum: Tensor | None
) -> tuple[Tensor | None, ...]:
    *saved, y = ctx.saved_tensors
    if grad is None:
        B, _, T, V = saved[1].shape
        G, W = saved[2].shape[:2]
        grad = saved[1].new_zeros(B, (G + 2) * W, (T + ctx.stride - 1) // ctx.stride, V)
    of_stats = used_sums(y, grad_sum, grad_square_sum)
    results = _op_backward(grad, *saved, *of_stats, ctx.dilations, ctx.stride)
    needs = ctx.needs_input_grad[:8]
    return (*(result if need else None for result, need in zip(results, needs, strict=True)), None, None, None)


_op.differentiable(_setup_context, _backward)
_op.autocast(keep=("scale", "shift"))
_op_backward.not_differentiable()


def _native_kernel(name: str) -> Callable[..., None]:
    return getattr(torch.ops.skelops_cpu, name)


if _native.missing["cpu"] is None:
    NATIVE["cpu"].impl("multi_scale_conv", composed.forward(_native_kernel), "CPU")
    NATIVE["cpu"].impl("multi_scale_conv_backward", composed.backward(_native_kernel), "CPU")
