"""A training step of STD-CL as released: two banks, and a Python loop over the anchors that mines each."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks.eager.common import pooled


# Every step selects another number of slots, anchor by anchor: compiled, it would be compiled anew each time.
@torch.compiler.disable
def bank_contrast(
    features: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    visited: Tensor,
    mined: tuple[int, int, int] = (128, 512, 512),
    temperature: float = 0.8,
    drawn: Tensor | None = None,
) -> Tensor:
    """The loss of unit features; the random negatives are drawn on the host, and are ``drawn`` (N, R) where given."""
    positives, hard, count = mined
    similarity = features.float() @ bank.float().T
    same = labels[:, None] == bank_labels
    positive_mask, negative_mask = same * visited.float(), (1 - same.float()) * visited.float()
    rows = []
    for i in range(len(labels)):
        if positive_mask[i].sum() < positives or negative_mask[i].sum() < max(hard, count):
            continue
        positive = torch.masked_select(similarity[i], positive_mask[i].bool())
        negative = torch.masked_select(similarity[i], negative_mask[i].bool())
        hard_positive = positive.sort(stable=True)[0][:positives]
        hard_negative = negative.sort(stable=True, descending=True)[0][:hard]
        places = torch.tensor(random.sample(list(range(len(negative))), count), device=negative.device)
        if drawn is not None:
            places = (negative_mask[i].bool().cumsum(0) - 1)[drawn[i]]
        for chosen in (hard_negative, negative[places]):
            rows.append(torch.cat([hard_positive[:, None], chosen.expand(positives, -1)], 1))
    if not rows:
        return features.sum() * 0
    logits = torch.cat(rows) / temperature
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


class Bank(nn.Module):
    bank: Tensor
    labels: Tensor
    visited: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("visited", torch.zeros(size, dtype=torch.bool))

    def forward(
        self, features: Tensor, labels: Tensor, indices: Tensor, mined: tuple[int, int, int], temperature: float
    ) -> Tensor:
        features = normalize(features, dim=1)
        with torch.no_grad():
            self.bank[indices], self.labels[indices] = features.detach().float(), labels
            self.visited[indices] = True
        return bank_contrast(features, labels, self.bank, self.labels, self.visited, mined, temperature)


class SqueezeHead(nn.Module):
    def __init__(self, channels: int, tokens: int, embedding: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv1d(channels, channels // 8, 1)
        self.embed = nn.Linear(channels // 8 * tokens, embedding)

    def forward(self, x: Tensor, bodies: int) -> Tensor:
        y = self.embed(self.bottleneck(x).view(len(x), -1))
        return y.view(-1, bodies, y.shape[1]).mean(1)


class STDCL(nn.Module):
    encoder_q: Any

    def __init__(
        self,
        encoder: Any,
        channels: int,
        num_classes: int,
        clips: int,
        frames: int,
        joints: int,
        mined: tuple[int, int, int] = (128, 512, 512),
        embedding: int = 256,
    ) -> None:
        super().__init__()
        self.encoder_q, self.fc, self.mined = encoder, nn.Linear(channels, num_classes), mined
        self.heads = nn.ModuleDict(
            {
                "spatial": SqueezeHead(channels, joints, embedding),
                "temporal": SqueezeHead(channels, frames, embedding),
            }
        )
        self.banks = nn.ModuleDict({name: Bank(embedding, clips) for name in self.heads})

    def forward(self, clips: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        bodies, last = clips.shape[4], self.encoder_q.feature_map(clips)
        loss = cross_entropy(self.fc(pooled(last, bodies)), labels)
        squeezed = {"spatial": last.mean(2), "temporal": last.mean(3)}
        for name, x in squeezed.items():
            found = self.heads[name](x, bodies)
            loss = loss + 0.5 * self.banks[name](found, labels, indices, self.mined, 0.8)
        return loss
