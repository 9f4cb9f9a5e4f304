"""bank_contrast in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from skelops.ops.info_nce.reference import through_unit
from skelops.ops.norm_act.reference import hashes
from skelops.ops.queue_attention.reference import working_dtype


def first(keys: Tensor, member: Tensor, count: int, descending: bool = False) -> Tensor:
    """The members of each row with the smallest (or largest) keys, (N, count) in their order; of equals the first."""
    order = keys.argsort(dim=1, descending=descending, stable=True)
    members_first = (~member).gather(1, order).to(torch.uint8).argsort(dim=1, stable=True)
    return order.gather(1, members_first[:, :count])


def bank_contrast(
    features: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    visited: Tensor,
    seed: Tensor,
    positives: int,
    hard_negatives: int,
    random_negatives: int,
    temperature: float,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(features.device.type, enabled=False):
        dtype = working_dtype(features, bank)
        x, slots = features.to(dtype), bank.to(dtype)
        unit = normalize(x, dim=1)
        similarity = unit @ slots.T
        same = labels[:, None] == bank_labels
        members, others = same & visited, ~same & visited
        kept = (members.sum(1) >= positives) & (others.sum(1) >= max(hard_negatives, random_negatives))
        share = kept.sum().clamp_min(1).to(dtype).reciprocal() / (2 * positives)

        index = torch.arange(similarity.numel(), device=seed.device).view(similarity.shape)
        chosen = [
            first(similarity, members, positives),
            first(similarity, others, hard_negatives, descending=True),
            first(hashes(index, seed), others, random_negatives),
        ]
        pulled_to, *pushed_from = (similarity.gather(1, part) / temperature for part in chosen)
        lse = torch.stack([logits.logsumexp(1) for logits in pushed_from], 1)
        excess = lse[:, None] - pulled_to[:, :, None]  # (N, positives, 2)
        loss = torch.where(kept, -logsigmoid(-excess).sum((1, 2)), 0).sum() * share
        if not gradient:
            return loss, kept, x.new_empty(0, x.shape[1])

        force = excess.sigmoid()
        pushes = [
            total[:, None] * (logits - log_sum[:, None]).exp()
            for total, logits, log_sum in zip(force.sum(1).unbind(1), pushed_from, lse.unbind(1), strict=True)
        ]
        weights = torch.cat([-force.sum(2), *pushes], 1) * (share / temperature)
        of_unit = (weights[:, None] @ slots[torch.cat(chosen, 1)])[:, 0]
        return loss, kept, torch.where(kept[:, None], through_unit(of_unit, x, unit), 0)
