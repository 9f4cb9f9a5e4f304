"""What a queue gives through PyTorch's fused attention, the queue being the keys and the values."""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten


def attend(query: Tensor, rows: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exp (N,) and mean (N, D) of the queue rows (Q, D) by the logits ``scale * query @ rows.T``.

    Flash attention for 16-bit dtypes, memory-efficient attention for float32 on a GPU. Both outputs are differentiable
    in the query; the gradient of the log-sum-exp alone needs no second pass, as it is ``scale * mean``.
    """
    q, kv = query[None, None], rows[None, None]
    if query.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, kv, kv, scale=scale)
    elif query.dtype == torch.float32:
        out, lse = aten._scaled_dot_product_efficient_attention(q, kv, kv, None, True, scale=scale)[:2]
    else:
        out, lse = aten._scaled_dot_product_flash_attention(q, kv, kv, scale=scale)[:2]
    mean = out[0, 0]
    # These ops do not differentiate their log-sum-exp: a term of value 0 brings its gradient.
    zero = scale * ((query - query.detach()) * mean.detach()).sum(1)
    return lse.detach().flatten()[: query.shape[0]] + zero, mean
