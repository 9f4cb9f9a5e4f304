"""Adjacency from features: how much joints (or frames) of a clip resemble each other, per head."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from skelops._checks import Shapes, divides_channels, not_empty, one_of, positive, same_device, same_dtype
from skelops._layout import empty_map, is_channels_last
from skelops._op import Op
from skelops.ops.joint_attention import reference


def joint_attention(
    source: Tensor,
    target: Tensor,
    static: Tensor | None = None,
    alpha: Tensor | None = None,
    *,
    heads: int,
    axis: Literal["joints", "frames"] = "joints",
    activation: Literal["tanh", "softmax"] = "tanh",
    scale: float | None = None,
) -> Tensor:
    """Adjacency per sample and head from the features of source and target joints.

    With head s a slice of C' channels, source joint v and target joint w::

        score[b,s,v,w] = scale * sum_c sum_t source[b,s,c,t,v] target[b,s,c,t,w]
        A[b,s,v,w] = alpha[s] * activation(score)[b,s,v,w] + static[s,v,w]

    With ``axis="frames"`` frames take the place of joints, and the sum runs over c and v. Sums are accumulated in
    float32 for float32 and 16-bit maps. Every tensor has a gradient.

    Args:
        source, target: (B, S*C', T, V), contiguous or channels_last, also slices of the channels of a channels_last map
            (other strides are copied once); a gradient has the format of its map.
        static: the part of A that is the same for every sample, (S, V, V), frames: (S, T, T); None: zero.
        alpha: weight of the activation per head, (S,); None: one.
        heads: S, a divisor of the channels.
        axis: what attends to what, "joints" or "frames".
        activation: "tanh", or "softmax" over the sources.
        scale: factor of the score; None: one over the number of terms of the sum, ``1 / (C' T)`` or ``1 / (C' V)``.

    Returns:
        A (B, S, V, V), frames: (B, S, T, T), in the dtype of ``source``.

    Raises:
        TypeError: an argument is no floating-point tensor, or the dtypes differ outside autocast.
        ValueError: shapes, devices or options do not fit, or the maps are without channels, frames or joints.

    The spatial attention of DSTA-Net (2020), the intra and inter attentions of SDS-CL, and the adaptive graph of
    2s-AGCN (CVPR 2019), equation 3.
    """
    shapes = Shapes()
    shapes.check("source", source, "B C T V")
    shapes.check("target", target, "B C T V")
    not_empty("source", source)
    C, T, V = (shapes[letter] for letter in "CTV")
    one_of("axis", axis, ("joints", "frames"))
    one_of("activation", activation, ("tanh", "softmax"))
    divides_channels("heads", heads, C)
    shapes.sizes["S"] = heads
    if static is not None:
        shapes.check("static", static, "S V V" if axis == "joints" else "S T T")
    if alpha is not None:
        shapes.check("alpha", alpha, "S")
    same_device(source=source, target=target, static=static, alpha=alpha)
    same_dtype(source=source, target=target, static=static, alpha=alpha)
    if scale is None:
        scale = heads / (C * (T if axis == "joints" else V))
    positive("scale", scale)
    return _op(source, target, static, alpha, heads, axis == "frames", activation == "softmax", float(scale))[0]


def _outputs(
    source: Tensor, target: Tensor, static: Tensor | None, alpha: Tensor | None, heads: int, frames: bool,
    softmax: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    positions = source.shape[2 if frames else 3]
    attention = source.new_empty(source.shape[0], heads, positions, positions)
    plain = static is None and alpha is None
    return attention, source.new_empty(0 if plain else attention.shape)


def _backward_outputs(
    grad: Tensor, source: Tensor, target: Tensor, active: Tensor, alpha: Tensor | None, heads: int, frames: bool,
    softmax: bool, scale: float, needs_source: bool, needs_target: bool, needs_static: bool, needs_alpha: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    def like(x: Tensor, needed: bool) -> Tensor:
        return empty_map(x, x.shape, is_channels_last(x)) if needed else x.new_empty(0)

    return (
        like(source, needs_source),
        like(target, needs_target),
        grad.new_empty(grad.shape[1:] if needs_static else 0),
        grad.new_empty(heads if needs_alpha else 0),
    )


_op = Op(
    "joint_attention(Tensor source, Tensor target, Tensor? static, Tensor? alpha, int heads, bool frames, bool softmax,"
    " float scale) -> (Tensor, Tensor)",
    reference=reference.joint_attention,
    outputs=_outputs,
)
_op_backward = Op(
    "joint_attention_backward(Tensor grad, Tensor source, Tensor target, Tensor active, Tensor? alpha, int heads,"
    " bool frames, bool softmax, float scale, bool needs_source, bool needs_target, bool needs_static,"
    " bool needs_alpha) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.joint_attention_backward,
    outputs=_backward_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    source, target, static, alpha, *ctx.options = inputs
    plain = static is None and alpha is None
    ctx.dtypes = [None if x is None else x.dtype for x in (source, target, static, alpha)]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(source, target, output[0 if plain else 1], alpha)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    source, target, active, alpha = ctx.saved_tensors
    needs = ctx.needs_input_grad[:4]
    results = _op_backward(grad, source, target, active, alpha, *ctx.options, *needs)
    kept = (r.to(dtype) if need else None for r, need, dtype in zip(results, needs, ctx.dtypes, strict=True))
    return (*kept, None, None, None, None)


_op.differentiable(_setup_context, _backward)
_op.autocast(keep=("static", "alpha"))
_op_backward.not_differentiable()
