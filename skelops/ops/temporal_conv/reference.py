"""temporal_conv in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from skelops._stats import with_stats_gradient, with_sums


def _normalised(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return scale[:, None, None] * x + shift[:, None, None]


def _activated(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    if scale is None or shift is None:
        return x
    return _normalised(x, scale, shift).relu_().to(x.dtype)


def temporal_conv(
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
    padding = weight.shape[2] // 2 * dilation
    a = _activated(x, scale, shift)
    y = conv2d(a, weight[..., None], bias, (stride, 1), (padding, 0), (dilation, 1), groups)
    return with_sums(y, stats)


def temporal_conv_backward(
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
    grad_a, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        with_stats_gradient(grad, y, grad_sum, grad_square_sum),
        _activated(x, scale, shift),
        weight[..., None],
        [weight.shape[0]],
        *([stride, 1], [weight.shape[2] // 2 * dilation, 0], [dilation, 1], False, [0, 0], groups),
        [needs_x or needs_affine, needs_weight, needs_bias],
    )
    none = x.new_empty(0)
    grad_x, grad_scale, grad_shift = grad_a, none, none
    if scale is not None and shift is not None and (needs_x or needs_affine):
        through = torch.where(_normalised(x, scale, shift) <= 0, 0, grad_a).to(scale.dtype)
        grad_x = (through * scale[:, None, None]).to(x.dtype)
        if needs_affine:
            grad_scale, grad_shift = (through * x).sum((0, 2, 3)), through.sum((0, 2, 3))
    return (
        grad_x if needs_x else none,
        grad_weight.squeeze(3) if needs_weight else none,
        grad_bias if needs_bias else none,
        grad_scale,
        grad_shift,
    )
