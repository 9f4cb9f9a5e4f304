"""nt_xent in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from skelops.ops.info_nce.reference import through_unit
from skelops.ops.queue_attention.reference import working_dtype


def _products(unit: Tensor, pairs: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens of both sets of each pair (G, N, 2P, D), and their products (G, N, 2P, 2P), without those with itself."""
    both = torch.cat([torch.stack([unit[i] for i in sets]) for sets in (pairs[::2], pairs[1::2])], 2)
    own = torch.eye(both.shape[2], dtype=torch.bool, device=unit.device)
    return both, (both @ both.mT).masked_fill(own, -torch.inf)


def nt_xent(tokens: Tensor, pairs: list[int], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(tokens.device.type, enabled=False):
        P = tokens.shape[2]
        _, products = _products(normalize(tokens.to(working_dtype(tokens)), dim=-1), pairs)
        most = products.amax(-1)
        log_total = ((products - most[..., None]) / temperature).exp().sum(-1).log()
        of_partner = products.roll(P, -1).diagonal(dim1=-2, dim2=-1)
        loss = ((most - of_partner) / temperature + log_total).mean((1, 2))
        most, log_total = (x.unflatten(2, (2, P)).transpose(1, 2) for x in (most, log_total))
        return loss, most, log_total


def nt_xent_backward(
    grad: Tensor, tokens: Tensor, most: Tensor, log_total: Tensor, pairs: list[int], temperature: float
) -> Tensor:
    with torch.autocast(tokens.device.type, enabled=False):
        _, N, P, _ = tokens.shape
        x = tokens.to(most.dtype)
        unit = normalize(x, dim=-1)
        both, products = _products(unit, pairs)
        most, log_total = (y.transpose(1, 2).flatten(2)[..., None] for y in (most, log_total))
        softmax = ((products - most) / temperature - log_total).exp()
        partner = torch.eye(2 * P, dtype=x.dtype, device=x.device).roll(P, 0)
        slopes = grad.view(-1, 1, 1, 1) / (2 * P * N * temperature) * (softmax - partner)
        of_both = (slopes + slopes.mT) @ both
        of_unit = torch.zeros_like(unit)
        for g, (a, b) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
            of_unit[a] += of_both[g, :, :P]
            of_unit[b] += of_both[g, :, P:]
        return through_unit(of_unit, x, unit).to(tokens.dtype)
