"""act(normalised map + residual) with dropout: one read of each map and one write."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skelops._checks import Shapes, affine_dtype, not_empty, same_device, same_dtype
from skelops._layout import empty_map, is_channels_last
from skelops._op import Op
from skelops.ops.norm_act import reference


def norm_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_shift: Tensor | None = None,
    *,
    negative_slope: float = 0.0,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """The end of a layer of an encoder: normalisation, dropout, residual connection and activation in one pass.

    ::

        y = act(drop(scale[c] x + shift[c]) + r),   r = residual  or  residual_scale[c] residual + residual_shift[c]
        act(z) = negative_slope z where z < 0 (0 with a slope of 0), else z

    ``drop`` sets elements to zero with probability ``dropout`` and divides the others by ``1 - dropout``. The mask is a
    function of the seed and of an element's place (`skelops.ops.norm_act.reference.kept`), the same for every backend
    and memory format; it is never stored, backward computes it again. Computed in float32 for float32 and less.

    Args:
        x: feature map (B, C, T, V), contiguous or channels_last (there also a slice of the channels of a wider map);
            the result keeps the format.
        scale, shift: (C,) float32 (float64 for a float64 map), as `skelops.batch_norm_affine` gives them.
        residual: a map like ``x``, or None.
        residual_scale, residual_shift: a normalisation of the residual, like ``scale`` and ``shift``; both or none.
        negative_slope: 0 for ReLU, 0.1 for the LeakyReLU of DSTA-Net, 1 for no activation.
        dropout: probability in [0, 1).
        seed: int64 (1,) on the device of ``x``; needed where ``dropout`` is not zero.

    Returns:
        y (B, C, T, V) in the dtype of ``x``; all float inputs have gradients.

    Raises:
        TypeError: a tensor is none, or of the wrong dtype.
        ValueError: shapes or devices do not fit together, the map is without channels, frames or joints,
            ``negative_slope`` or ``dropout`` is no number of its range, the seed or one of an affine pair is missing.
    """
    shapes = Shapes()
    shapes.check("x", x, "B C T V")
    not_empty("x", x)
    shapes.check("scale", scale, "C")
    shapes.check("shift", shift, "C")
    if residual is not None:
        shapes.check("residual", residual, "B C T V")
    if residual_scale is not None and residual_shift is not None:
        if residual is None:
            raise ValueError("residual: expected a map beside residual_scale, got None")
        shapes.check("residual_scale", residual_scale, "C")
        shapes.check("residual_shift", residual_shift, "C")
    elif residual_scale is not None or residual_shift is not None:
        missing = "residual_shift" if residual_shift is None else "residual_scale"
        raise ValueError(f"{missing}: expected both residual_scale and residual_shift or none, got None")
    if not isinstance(negative_slope, int | float) or not 0 <= negative_slope < float("inf"):
        raise ValueError(f"negative_slope: expected a number of at least 0, got {negative_slope!r}")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a probability below 1, got {dropout!r}")
    if not dropout:
        seed = None
    elif seed is None:
        raise ValueError("seed: expected an int64 tensor (1) for dropout, got None")
    else:
        shapes.check("seed", seed, "1", dtype=torch.int64)
    same_device(
        x=x, scale=scale, shift=shift, residual=residual, residual_scale=residual_scale, residual_shift=residual_shift,
        seed=seed,
    )  # fmt: skip
    same_dtype(x=x, residual=residual)
    affine_dtype(x, scale=scale, shift=shift, residual_scale=residual_scale, residual_shift=residual_shift)
    return _op(
        x, scale, shift, residual, residual_scale, residual_shift, float(negative_slope), float(dropout), seed
    )  # fmt: skip


def _outputs(x: Tensor, *others: Any) -> Tensor:
    return empty_map(x, x.shape, is_channels_last(x))


def _backward_outputs(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    def like_x(needed: bool) -> Tensor:
        return empty_map(x, x.shape, is_channels_last(x)) if needed else x.new_empty(0)

    def like_scale(needed: bool) -> Tensor:
        return scale.new_empty(x.shape[1] if needed else 0)

    needs_x, needs_affine, needs_residual, needs_residual_affine = needs
    affine = like_scale(needs_affine), like_scale(needs_affine)
    residual_affine = like_scale(needs_residual_affine), like_scale(needs_residual_affine)
    return like_x(needs_x), *affine, like_x(needs_residual), *residual_affine


_op = Op(
    "norm_act(Tensor x, Tensor scale, Tensor shift, Tensor? residual, Tensor? residual_scale, Tensor? residual_shift,"
    " float negative_slope, float dropout, Tensor? seed) -> Tensor",
    reference=reference.norm_act,
    outputs=_outputs,
)
_op_backward = Op(
    "norm_act_backward(Tensor grad, Tensor x, Tensor? y, Tensor scale, Tensor? residual, Tensor? residual_scale,"
    " float negative_slope, float dropout, Tensor? seed, bool[] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.norm_act_backward,
    outputs=_backward_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, _, residual, residual_scale, _, ctx.negative_slope, ctx.dropout, seed = inputs
    # Of y only the sign matters, and of a residual that is added as it is nothing.
    y = None if ctx.negative_slope == 1 else output
    ctx.save_for_backward(x, y, scale, None if residual_scale is None else residual, residual_scale, seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y, scale, residual, residual_scale, seed = ctx.saved_tensors
    needed = ctx.needs_input_grad[:6]
    needs = [needed[0], needed[1] or needed[2], needed[3], needed[4] or needed[5]]
    gradients = _op_backward(
        grad, x, y, scale, residual, residual_scale, ctx.negative_slope, ctx.dropout, seed, needs
    )  # fmt: skip
    return *(g if need else None for g, need in zip(gradients, needed, strict=True)), None, None, None


_op.differentiable(_setup_context, _backward)
_op.autocast(keep=("scale", "shift", "residual_scale", "residual_shift"))
_op_backward.not_differentiable()
