"""hop_attention in eager PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _attention(
    query: Tensor, key: Tensor, group_key: Tensor, hop_key: Tensor, group_bias: Tensor, hops: Tensor, groups: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The softmax (B, T, H, V, V), sources before targets, and the keys with those of their groups (B, H, d, T, V)."""
    keys = key + group_key[..., groups]
    score = torch.einsum("bhctv,bhctw->bthvw", keys, query)
    by_hop = torch.einsum("hnc,bhctw->bthnw", hop_key, query)
    score = score + by_hop.gather(3, hops.expand_as(score))
    of_group = torch.einsum("hc,bhctg->bthg", group_bias, group_key)
    return torch.softmax(scale * (score + of_group[..., groups, None]), 3), keys


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(1, (heads, x.shape[1] // heads))


def hop_attention(
    qkv: Tensor, group_key: Tensor, hop_key: Tensor, group_bias: Tensor, static: Tensor, alpha: Tensor, hops: Tensor,
    groups: Tensor, heads: int, scale: float,
) -> Tensor:  # fmt: skip
    query, key, value, group_key = (_heads(x, heads) for x in (*qkv.chunk(3, 1), group_key))
    softmax, _ = _attention(query, key, group_key, hop_key, group_bias, hops, groups, scale)
    attention = (alpha * softmax + static).to(value.dtype)
    return torch.einsum("bthvw,bhctv->bhctw", attention, value).flatten(1, 2)


def hop_attention_backward(
    grad: Tensor, qkv: Tensor, group_key: Tensor, hop_key: Tensor, group_bias: Tensor, static: Tensor, alpha: Tensor,
    hops: Tensor, groups: Tensor, heads: int, scale: float, needs: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    grad, query, key, value, group_key = (_heads(x, heads) for x in (grad, *qkv.chunk(3, 1), group_key))
    softmax, keys = _attention(query, key, group_key, hop_key, group_bias, hops, groups, scale)
    of_attention = torch.einsum("bhctv,bhctw->bthvw", value, grad)
    of_alpha = (softmax * of_attention).sum(3, keepdim=True)
    of_score = (scale * alpha * softmax * (of_attention - of_alpha)).to(query.dtype)
    by_hop = of_score.new_zeros(*of_score.shape[:3], hop_key.shape[1], len(groups))
    by_hop = by_hop.scatter_add(3, hops.expand_as(of_score), of_score)
    of_key = torch.einsum("bthvw,bhctw->bhctv", of_score, query)
    by_group = of_score.new_zeros(*of_score.shape[:3], group_key.shape[4]).index_add(3, groups, of_score.sum(4))
    of_group_key = torch.zeros_like(group_key).index_add(4, groups, of_key)
    attention = (alpha * softmax + static).to(grad.dtype)
    of_query = torch.einsum("bthvw,bhctv->bhctw", of_score, keys) + torch.einsum("bthnw,hnc->bhctw", by_hop, hop_key)
    of_value = torch.einsum("bthvw,bhctw->bhctv", attention, grad)
    gradients = (
        torch.cat([x.flatten(1, 2) for x in (of_query, of_key, of_value)], 1),
        (of_group_key + torch.einsum("bthg,hc->bhctg", by_group, group_bias)).flatten(1, 2),
        torch.einsum("bthnw,bhctw->hnc", by_hop, query),
        torch.einsum("bthg,bhctg->hc", by_group, group_key),
        of_attention.sum((0, 1)),
        of_alpha.sum().view(1),
    )
    none = grad.new_empty(0)
    return tuple(gradient if need else none for gradient, need in zip(gradients, needs, strict=True))
