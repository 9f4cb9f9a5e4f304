"""Spatial squeeze, temporal squeeze and global mean of one feature map, read once."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from skelops._checks import Shapes, not_empty, positive_integer, same_device
from skelops._layout import empty_map, is_channels_last
from skelops._op import Op
from skelops.ops.squeeze_pool import reference


class SqueezePool(NamedTuple):
    """What `squeeze_pool` returns.

    Attributes:
        frames: spatial squeeze (N, C, T), the mean over joints.
        joints: temporal squeeze (N, C, V), the mean over frames.
        mean: global mean (N, C).
    """

    frames: Tensor
    joints: Tensor
    mean: Tensor


def squeeze_pool(x: Tensor, lengths: Tensor | None = None, bodies: int = 1) -> SqueezePool:
    """Means of a feature map over joints, over frames and over both, from one read of the map.

    With ``M = bodies``, ``B = N * M`` and ``L[b]`` the number of valid frames of row ``b``::

        frames[n, c, t] = 1/M sum_m 1/V    sum_v          x[n*M+m, c, t, v]    (0 where t >= L)
        joints[n, c, v] = 1/M sum_m 1/L    sum_{t<L}      x[n*M+m, c, t, v]
        mean[n, c]      = 1/M sum_m 1/(LV) sum_{t<L} sum_v x[n*M+m, c, t, v]

    Sums are accumulated in float32 for float32 and bfloat16.

    Args:
        x: feature map (B, C, T, V), contiguous or channels_last (other strides are copied once).
        lengths: valid frames per row (B,), an integer tensor with values in 0..T; frames past them are ignored, and a
            row without valid frames contributes zeros. None: all frames are valid.
        bodies: bodies per clip that are averaged, in consecutive rows.

    Returns:
        `SqueezePool` with the dtype of ``x``.

    Raises:
        TypeError: ``x`` is no floating-point tensor, ``lengths`` no integer tensor.
        ValueError: shapes or devices do not fit together, ``bodies`` is no positive integer that divides B, or the map
            is without channels, frames or joints.

    The squeezes of SDS-CL (its spatial and temporal tokens) and STD-CL (both heads), and the pooling before every
    classifier.
    """
    shapes = Shapes()
    shapes.check("x", x, "B C T V")
    not_empty("x", x)
    if lengths is not None:
        shapes.check("lengths", lengths, "B", dtype="integer")
        same_device(x=x, lengths=lengths)
    positive_integer("bodies", bodies)
    if shapes["B"] % bodies:
        raise ValueError(f"bodies: expected a divisor of B={shapes['B']}, got {bodies}")
    return SqueezePool(*_op(x, lengths, bodies))


def _outputs(x: Tensor, lengths: Tensor | None, bodies: int) -> tuple[Tensor, Tensor, Tensor]:
    B, C, T, V = x.shape
    N = B // bodies
    return x.new_empty(N, C, T), x.new_empty(N, C, V), x.new_empty(N, C)


def _backward_outputs(
    frames: Tensor, joints: Tensor, mean: Tensor, lengths: Tensor | None, bodies: int, channels_last: bool
) -> Tensor:
    N, C, T = frames.shape
    return empty_map(frames, (N * bodies, C, T, joints.shape[2]), channels_last)


_op = Op(
    "squeeze_pool(Tensor x, Tensor? lengths, int bodies) -> (Tensor, Tensor, Tensor)",
    reference=reference.squeeze_pool,
    outputs=_outputs,
)
_op_backward = Op(
    "squeeze_pool_backward(Tensor frames, Tensor joints, Tensor mean, Tensor? lengths, int bodies, bool channels_last)"
    " -> Tensor",
    reference=reference.squeeze_pool_backward,
    outputs=_backward_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, lengths, ctx.bodies = inputs
    ctx.channels_last = is_channels_last(x)
    if lengths is not None:
        ctx.save_for_backward(lengths)


def _backward(ctx: Any, frames: Tensor, joints: Tensor, mean: Tensor) -> tuple[Tensor, None, None]:
    lengths = next(iter(ctx.saved_tensors), None)
    return _op_backward(frames, joints, mean, lengths, ctx.bodies, ctx.channels_last), None, None


_op.differentiable(_setup_context, _backward)
_op_backward.not_differentiable()
