"""Attention over a memory queue: log-sum-exp of the logits and softmax-weighted mean of the queue, in one pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from skelops._checks import Shapes, has_width, positive, same_device
from skelops._op import Op
from skelops.ops.queue_attention import reference


class QueueAttention(NamedTuple):
    """What `queue_attention` returns.

    Attributes:
        lse: log-sum-exp of the logits (N,).
        out: softmax-weighted mean of the queue (N, D).
    """

    lse: Tensor
    out: Tensor


def queue_attention(query: Tensor, queue: Tensor, scale: float = 1.0, valid: Tensor | None = None) -> QueueAttention:
    """Log-sum-exp of a query's logits against a queue, and the softmax-weighted mean of the queue.

    With ``logit[n, j] = scale * query[n] . queue[j]``::

        lse[n] = log sum_j exp(logit[n, j])
        out[n] = sum_j exp(logit[n, j] - lse[n]) queue[j]

    The logits are never stored. It is attention whose keys are its values, and what contrastive losses with a queue are
    made of: InfoNCE with positive logit ``pos`` is ``logaddexp(lse, pos) - pos``, and the cross-entropy between the
    distributions of two queries over the queue is ``lse_s - scale_s * (query_s * out_t).sum(1)``.

    Differentiable in ``query`` alone, through both outputs. The gradient of ``lse`` is ``scale * out`` and does not
    look at the queue again (nor does it mind that the queue was overwritten meanwhile); the gradient of ``out`` is one
    more pass over it. Computed in float32 (float64 where an input has it), also under autocast.

    Args:
        query: (N, D).
        queue: (Q, D), or (D, Q) as MoCo stores it, with any strides and of any floating-point dtype; told apart by
            which axis has length D. A square one is taken as (Q, D): pass ``queue.t()`` otherwise.
        scale: factor of the logits, above zero: one over the temperature.
        valid: number of slots that are filled, an integer tensor with one element, clamped to 0..Q; the slots behind
            them are ignored. It is not read on the host. Where no slot is filled, lse is -inf and out is 0. None: all
            slots.

    Returns:
        `QueueAttention`, float32 or float64.

    Raises:
        TypeError: ``query`` or ``queue`` is no floating-point tensor, ``valid`` no integer tensor, ``scale`` no number.
        ValueError: shapes or devices do not fit together, D is 0, or ``scale`` is not above zero.
        RuntimeError: in backward, if ``out`` has a gradient and the queue was overwritten since.
    """
    Shapes().check("query", query, "N D")
    has_width("query", query)
    rows = queue_rows(queue, query.shape[-1])
    check_valid(valid)
    positive("scale", scale)
    same_device(query=query, queue=queue, valid=valid)
    return QueueAttention(*_op(query, rows, float(scale), valid))


def queue_rows(queue: Any, D: int) -> Tensor:
    """A queue (Q, D) or (D, Q) as a view (Q, D); a square one is (Q, D) already.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: neither axis has length ``D``.
    """
    # Without the checker where it would find nothing: the ring write takes little longer than it.
    if isinstance(queue, Tensor) and queue.is_floating_point() and queue.dim() == 2 and D in queue.shape:
        return queue if queue.shape[1] == D else queue.t()
    shapes = Shapes()
    shapes.sizes["D"] = D
    shapes.check("queue", queue, "Q D", "D Q")
    raise AssertionError("the check finds what is wrong")


def check_valid(valid: Any) -> None:
    """``valid`` is None or an integer tensor with one element.

    Raises:
        TypeError: not an integer tensor.
        ValueError: more than one element.
    """
    if valid is None:
        return
    if not isinstance(valid, Tensor) or valid.is_floating_point() or valid.is_complex() or valid.dtype == torch.bool:
        found = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise TypeError(f"valid: expected an integer tensor or None, got {found}")
    if valid.numel() != 1:
        raise ValueError(f"valid: expected one element, got shape {tuple(valid.shape)}")


def _outputs(query: Tensor, queue: Tensor, scale: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = reference.working_dtype(query, queue)
    return query.new_empty(query.shape[0], dtype=dtype), query.new_empty(query.shape, dtype=dtype)


def _backward_outputs(
    lse_gradient: Tensor | None,
    gradient: Tensor,
    query: Tensor,
    queue: Tensor,
    lse: Tensor,
    out: Tensor,
    scale: float,
    valid: Tensor | None,
) -> Tensor:
    return query.new_empty(query.shape)


_op = Op(
    "queue_attention(Tensor query, Tensor queue, float scale, Tensor? valid) -> (Tensor, Tensor)",
    reference=reference.queue_attention,
    outputs=_outputs,
)
_op_backward = Op(
    "queue_attention_backward(Tensor? lse_gradient, Tensor gradient, Tensor query, Tensor queue, Tensor lse,"
    " Tensor out, float scale, Tensor? valid) -> Tensor",
    reference=reference.queue_attention_backward,
    outputs=_backward_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, queue, ctx.scale, valid = inputs
    ctx.save_for_backward(query, *output)
    ctx.set_materialize_grads(False)
    # Not through save_for_backward: it would refuse a queue that was overwritten even where only lse has a gradient.
    ctx.slots = queue, valid
    ctx.versions = _versions(ctx.slots)


def _versions(tensors: tuple[Tensor | None, ...]) -> list[int]:
    return [t._version for t in tensors if t is not None and not t.is_inference()]


def _backward(
    ctx: Any, lse_gradient: Tensor | None, out_gradient: Tensor | None
) -> tuple[Tensor | None, None, None, None]:
    query, lse, out = ctx.saved_tensors
    if out_gradient is None:
        gradient = None if lse_gradient is None else (ctx.scale * lse_gradient[:, None] * out).to(query.dtype)
        return gradient, None, None, None
    queue, valid = ctx.slots
    if _versions(ctx.slots) != ctx.versions:
        raise RuntimeError(
            "queue_attention: queue (or valid) was overwritten between forward and backward, and the gradient of out"
            " needs it; call backward before enqueue_, or pass a clone of the queue"
        )
    gradient = _op_backward(lse_gradient, out_gradient, query, queue, lse, out, ctx.scale, valid)
    return gradient, None, None, None


_op.differentiable(_setup_context, _backward)
_op_backward.not_differentiable()
