"""queue_attention in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def working_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float32, or float64 where one of the tensors has it: what logits are computed in."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def filled_slots(queue: Tensor, valid: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The queue with zeros in the slots that are not filled (they may hold NaN), and which slots are filled (Q,)."""
    if valid is None:
        return queue.to(dtype), None
    mask = torch.arange(queue.shape[0], device=queue.device) < valid.reshape(())
    return torch.where(mask[:, None], queue.to(dtype), 0), mask


def masked_logits(query: Tensor, queue: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    logits = scale * (query @ queue.T)
    return logits if mask is None else logits.masked_fill(~mask, -torch.inf)


def softmax_weights(logits: Tensor, lse: Tensor, mask: Tensor | None) -> Tensor:
    weights = (logits - lse[:, None]).exp()
    return weights if mask is None else torch.where(mask, weights, 0)


def queue_attention(query: Tensor, queue: Tensor, scale: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    # The dtypes are part of the definition, so autocast must not lower the products.
    with torch.autocast(query.device.type, enabled=False):
        query = query.to(working_dtype(query, queue))
        slots, mask = filled_slots(queue, valid, query.dtype)
        logits = masked_logits(query, slots, mask, scale)
        lse = logits.logsumexp(1)
        return lse, softmax_weights(logits, lse, mask) @ slots


def queue_attention_backward(
    lse_gradient: Tensor | None,
    gradient: Tensor,
    query: Tensor,
    queue: Tensor,
    lse: Tensor,
    out: Tensor,
    scale: float,
    valid: Tensor | None,
) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        slots, mask = filled_slots(queue, valid, out.dtype)
        weights = softmax_weights(masked_logits(query.to(out.dtype), slots, mask, scale), lse, mask)
        along = -(out * gradient).sum(1) if lse_gradient is None else lse_gradient - (out * gradient).sum(1)
        return (scale * ((weights * (gradient @ slots.T)) @ slots + along[:, None] * out)).to(query.dtype)
