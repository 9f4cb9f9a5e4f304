"""nt_xent in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from skelops.ops.info_nce.reference import _through_unit
from skelops.ops.queue_attention.reference import working_dtype


def _logits(unit: Tensor, pairs: list[int], temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens of both sets of each pair (G, N, 2P, D), and their logits (G, N, 2P, 2P), without a token's own."""
    both = torch.cat([torch.stack([unit[i] for i in sets]) for sets in (pairs[::2], pairs[1::2])], 2)
    own = torch.eye(both.shape[2], dtype=torch.bool, device=unit.device)
    return both, (both @ both.mT / temperature).masked_fill(own, -torch.inf)


def nt_xent(tokens: Tensor, pairs: list[int], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(tokens.device.type, enabled=False):
        P = tokens.shape[2]
        unit = normalize(tokens.to(working_dtype(tokens)), dim=-1)
        _, logits = _logits(unit, pairs, temperature)
        of_partner = logits[..., :P, P:].diagonal(dim1=-2, dim2=-1)
        lse = logits.logsumexp(-1).unflatten(-1, (2, P)).transpose(1, 2)
        losses = lse - of_partner[:, None]
        return losses.mean((1, 2, 3)), losses, temperature * of_partner


def nt_xent_backward(
    grad: Tensor, tokens: Tensor, losses: Tensor, positives: Tensor, pairs: list[int], temperature: float
) -> Tensor:
    with torch.autocast(tokens.device.type, enabled=False):
        _, N, P, _ = tokens.shape
        x = tokens.to(losses.dtype)
        unit = normalize(x, dim=-1)
        both, logits = _logits(unit, pairs, temperature)
        lse = (losses + positives[:, None] / temperature).transpose(1, 2).flatten(2)
        partner = torch.eye(2 * P, dtype=x.dtype, device=x.device).roll(P, 0)
        slopes = grad.view(-1, 1, 1, 1) / (2 * P * N * temperature) * ((logits - lse[..., None]).exp() - partner)
        of_both = (slopes + slopes.mT) @ both
        of_unit = torch.zeros_like(unit)
        for g, (a, b) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
            of_unit[a] += of_both[g, :, :P]
            of_unit[b] += of_both[g, :, P:]
        return _through_unit(of_unit, x, unit).to(tokens.dtype)
