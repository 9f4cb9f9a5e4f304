"""info_nce in eager PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skelops.ops.queue_attention.reference import filled_slots, masked_logits, working_dtype


def _unit(x: Tensor, dtype: torch.dtype, normalize: bool) -> Tensor:
    return torch.nn.functional.normalize(x.to(dtype), dim=-1) if normalize else x.to(dtype)


def through_unit(gradient: Tensor, x: Tensor, unit: Tensor) -> Tensor:
    """The gradient of x from that of x / max(|x|, 1e-12)."""
    length = x.norm(dim=-1, keepdim=True)
    along = torch.where(length < 1e-12, 0, (unit * gradient).sum(-1, keepdim=True))
    return (gradient - along * unit) / length.clamp_min(1e-12)


def _entries(key: Tensor, extra_positives: Tensor | None, extra_negatives: Tensor | None) -> Tensor:
    """All that a row is contrasted with besides the queue (N, 1 + P + E, D), positives first."""
    dtype = working_dtype(key, extra_positives, extra_negatives)
    extras = [extra.to(dtype) for extra in (extra_positives, extra_negatives) if extra is not None]
    return torch.cat([key[:, None].to(dtype), *extras], 1)


def info_nce(
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
    with torch.autocast(query.device.type, enabled=False):
        dtype = working_dtype(query, key, queue, extra_positives, extra_negatives)
        q = _unit(query, dtype, normalize)
        entries = _unit(_entries(key, extra_positives, extra_negatives), dtype, normalize)
        slots, mask = filled_slots(queue, valid, dtype)
        logits = (entries @ q[:, :, None])[:, :, 0] / temperature
        contrast = masked_logits(q, slots, mask, 1 / temperature)
        every = torch.cat([logits, contrast], 1)
        lse = every.logsumexp(1)
        positives = 1 if extra_positives is None else 1 + extra_positives.shape[1]
        loss = lse - logits[:, :positives].logsumexp(1) + math.log(positives)
        if not each:
            loss = loss.mean() if averaged else loss.sum()
        rank = (every[:, positives:] > logits[:, :1]).sum(1)
        log_weights = logits - lse[:, None]
        if not gradient:
            return loss, lse, rank, log_weights, q.new_empty(0, q.shape[1])
        mean = (log_weights.exp()[:, None] @ entries)[:, 0] + (contrast - lse[:, None]).exp() @ slots
        return loss, lse, rank, log_weights, mean


def info_nce_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(query.device.type, enabled=False):
        dtype, scale, N = log_weights.dtype, 1 / temperature, query.shape[0]
        of_loss = log_weights.new_zeros(N) if loss_gradient is None else loss_gradient.expand(N)
        if averaged:
            of_loss = of_loss / N
        of_all = of_loss if lse_gradient is None else of_loss + lse_gradient
        positives = 1 if extra_positives is None else 1 + extra_positives.shape[1]
        pull = torch.zeros_like(log_weights)
        pull[:, :positives] = of_loss[:, None] * log_weights[:, :positives].softmax(1)
        weights = of_all[:, None] * log_weights.exp() - pull

        q, entries = query.to(dtype), _entries(key, extra_positives, extra_negatives).to(dtype)
        unit_q, unit_entries = _unit(q, dtype, normalize), _unit(entries, dtype, normalize)
        of_query = scale * (of_all[:, None] * mean - (pull[:, None] @ unit_entries)[:, 0]) if needs[0] else unit_q
        of_entries = scale * weights[:, :, None] * unit_q[:, None]
        if normalize:
            of_query, of_entries = through_unit(of_query, q, unit_q), through_unit(of_entries, entries, unit_entries)
        of_key, of_positives, of_negatives = of_entries.split([1, positives - 1, entries.shape[1] - positives], 1)

        def given(wanted: bool, x: Tensor | None, gradient: Tensor) -> Tensor:
            return gradient.to(x.dtype) if wanted and x is not None else query.new_empty(0)

        return (
            given(needs[0], query, of_query),
            given(needs[1], key, of_key[:, 0]),
            given(needs[2], extra_positives, of_positives),
            given(needs[3], extra_negatives, of_negatives),
        )
