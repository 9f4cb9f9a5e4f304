"""InfoNCE against a memory queue: loss, log-sum-exp and rank of the positive from one pass, no logits stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from skelops._checks import has_width, one_of, positive, same_device
from skelops._op import Op
from skelops.ops.info_nce import reference
from skelops.ops.queue_attention import check_valid, queue_rows
from skelops.ops.queue_attention.reference import working_dtype


class InfoNCE(NamedTuple):
    """What `info_nce` returns.

    Attributes:
        loss: a scalar for reduction "mean" and "sum", (...) for "none".
        lse: log-sum-exp of all logits of a row (...), those of the positives included; differentiable.
        rank: negatives with a logit above that of the key (...), int64: 0 where the key is first, so that
            ``(rank < k).float().mean()`` is the top-k accuracy which MoCo code logs.
    """

    loss: Tensor
    lse: Tensor
    rank: Tensor


def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: float = 0.07,
    *,
    extra_positives: Tensor | None = None,
    extra_negatives: Tensor | None = None,
    valid: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
) -> InfoNCE:
    """InfoNCE of queries against their keys, the negatives being a memory queue that all queries share.

    With ``s(x) = query . x / temperature``, positives ``p`` (the key and P extra ones) and negatives ``j`` (the queue
    and E extra ones)::

        lse  = log( sum_p exp(s(p)) + sum_j exp(s(j)) )
        loss = lse - log( 1 / (1 + P) sum_p exp(s(p)) )

    With the key alone it is the cross-entropy of the logits (key, negatives) with label 0 (MoCo, He et al. 2020); with
    several positives the mean of their probabilities takes the place of one, as in CrosSCLR and SkeleMixCLR
    ("multi-NCE").

    All queries, of any number of groups (G, N, D), share one pass over the queue, forward and backward together: the
    backward pass does not read it, so ``enqueue_`` may overwrite it before ``backward`` and no clone is needed.
    Computed in float32 (float64 where an input has it), also under autocast. There is no double backward.

    Args:
        query: (..., D).
        key: the positive of each query, (..., D) or a shape that broadcasts to that of ``query``.
        queue: (Q, D), or (D, Q) as MoCo stores it, with any strides; told apart by which axis has length D. A square
            one is taken as (Q, D): pass ``queue.t()`` otherwise. It is taken as it is (normalised, usually) and gets no
            gradient.
        temperature: above zero.
        extra_positives: further positives per query, (..., P, D), or broadcasting to that.
        extra_negatives: further negatives per query, (..., E, D), or broadcasting to that.
        valid: number of slots of the queue that are filled, an integer tensor with one element, clamped to 0..Q; the
            slots behind them are ignored. It is not read on the host. None: all slots.
        normalize: bring query, key and extras to unit length first (as torch.nn.functional.normalize does).
        reduction: "mean", "sum" or "none", of the loss alone.

    Returns:
        `InfoNCE`; query, key and extras get gradients where they ask for them. Dtypes may differ among all inputs.

    Raises:
        TypeError: an argument is no tensor of the expected kind, or ``temperature`` no number.
        ValueError: shapes or devices do not fit together, D is 0, ``temperature`` is not above zero, or ``reduction``
            is unknown.
    """
    if not isinstance(query, Tensor) or not query.is_floating_point():
        raise TypeError(
            f"query: expected a float tensor, got {query.dtype if isinstance(query, Tensor) else type(query).__name__}"
        )
    if query.dim() == 0:
        raise ValueError("query: expected shape (..., D), got ()")
    has_width("query", query)
    lead, D = query.shape[:-1], query.shape[-1]
    slots = queue_rows(queue, D)
    keys = _per_query("key", key, lead, "D", D)
    positives = None if extra_positives is None else _per_query("extra_positives", extra_positives, lead, "P, D", D)
    negatives = None if extra_negatives is None else _per_query("extra_negatives", extra_negatives, lead, "E, D", D)
    check_valid(valid)
    positive("temperature", temperature)
    one_of("reduction", reduction, ("mean", "sum", "none"))
    same_device(
        query=query, key=key, queue=queue, extra_positives=extra_positives, extra_negatives=extra_negatives, valid=valid
    )
    gradient = torch.is_grad_enabled() and query.requires_grad
    rows = query if query.dim() == 2 else query.reshape(lead.numel(), D)
    each, averaged = reduction == "none", reduction == "mean"
    loss, lse, rank, *_ = _op(
        rows, keys, slots, positives, negatives, valid, float(temperature), bool(normalize), each, averaged, gradient
    )
    if query.dim() == 2:
        return InfoNCE(loss, lse, rank)
    return InfoNCE(loss.reshape(lead) if each else loss, lse.reshape(lead), rank.reshape(lead))


def _per_query(name: str, x: Any, lead: torch.Size, letters: str, D: int) -> Tensor:
    """A tensor that broadcasts to (*lead, D) or (*lead, E, D), as (N, D) or (N, E, D)."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(
            f"{name}: expected a float tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}"
        )
    axes = len(letters.split(", "))
    tail = x.shape[-axes:]
    fits = x.dim() >= axes and tail[-1] == D and x.dim() <= len(lead) + axes
    outer = x.shape[: x.dim() - axes]
    if not fits or any(have not in (1, want) for have, want in zip(outer[::-1], lead[::-1], strict=False)):
        wanted = ", ".join([*map(str, lead), letters])
        raise ValueError(f"{name}: expected a shape that broadcasts to ({wanted}) with D={D}, got {tuple(x.shape)}")
    if len(lead) == 1 and outer == lead:
        return x
    return x.expand(*lead, *tail).reshape(lead.numel(), *tail)


def _outputs(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    extra_positives: Tensor | None,
    extra_negatives: Tensor | None,
    valid: Tensor | None,
    temperature: float,
    normalize: bool,
    each: bool,
    averaged: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, lse, rank; log-probabilities of key and extras; the mean under the softmax of all that is contrasted."""
    N, D = query.shape
    entries = 1 + sum(extra.shape[1] for extra in (extra_positives, extra_negatives) if extra is not None)
    dtype = working_dtype(query, key, queue, extra_positives, extra_negatives)
    loss = query.new_empty(N if each else (), dtype=dtype)
    mean = query.new_empty(N if gradient else 0, D, dtype=dtype)
    lse, rank = query.new_empty(N, dtype=dtype), query.new_empty(N, dtype=torch.int64)
    return loss, lse, rank, query.new_empty(N, entries, dtype=dtype), mean


def _backward_outputs(
    loss_gradient: Tensor | None,
    lse_gradient: Tensor | None,
    query: Tensor,
    key: Tensor,
    extra_positives: Tensor | None,
    extra_negatives: Tensor | None,
    log_weights: Tensor,
    mean: Tensor,
    temperature: float,
    normalize: bool,
    each: bool,
    averaged: bool,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    inputs = (query, key, extra_positives, extra_negatives)
    return tuple(
        x.new_empty(x.shape if wanted else 0) if x is not None else query.new_empty(0)
        for x, wanted in zip(inputs, needs, strict=True)
    )


_op = Op(
    "info_nce(Tensor query, Tensor key, Tensor queue, Tensor? extra_positives, Tensor? extra_negatives, Tensor? valid,"
    " float temperature, bool normalize, bool each, bool averaged, bool gradient)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.info_nce,
    outputs=_outputs,
)
_op_backward = Op(
    "info_nce_backward(Tensor? loss_gradient, Tensor? lse_gradient, Tensor query, Tensor key, Tensor? extra_positives,"
    " Tensor? extra_negatives, Tensor log_weights, Tensor mean, float temperature, bool normalize, bool each,"
    " bool averaged, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.info_nce_backward,
    outputs=_backward_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, _, extra_positives, extra_negatives, _, *ctx.options, _ = inputs
    _, _, rank, log_weights, mean = output
    ctx.mark_non_differentiable(rank, log_weights, mean)
    ctx.set_materialize_grads(False)
    # Not the queue: it may be overwritten before backward.
    ctx.save_for_backward(query, key, extra_positives, extra_negatives, log_weights, mean)


def _backward(ctx: Any, loss: Tensor | None, lse: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if loss is None and lse is None:
        return (None,) * 11
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 3, 4)]
    gradients = _op_backward(loss, lse, *ctx.saved_tensors, *ctx.options, needs)
    query, key, positives, negatives = (g if wanted else None for g, wanted in zip(gradients, needs, strict=True))
    return query, key, None, positives, negatives, None, None, None, None, None, None


_op.differentiable(_setup_context, _backward)
_op_backward.not_differentiable()
