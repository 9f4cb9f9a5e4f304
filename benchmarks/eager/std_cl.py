"""A training step of STD-CL as released: two banks, and a Python loop over the anchors that mines each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks.eager.common import pooled


class Bank(nn.Module):
    bank: Tensor
    labels: Tensor
    visited: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("visited", torch.zeros(size, dtype=torch.bool))

    # Every step selects another number of slots, anchor by anchor: compiled, it would be compiled anew each time.
    @torch.compiler.disable
    def forward(
        self, features: Tensor, labels: Tensor, indices: Tensor, mined: tuple[int, int, int], temperature: float
    ) -> Tensor:
        features = normalize(features, dim=1)
        with torch.no_grad():
            self.bank[indices], self.labels[indices] = features.detach().float(), labels
            self.visited[indices] = True
        similarity = features @ self.bank[self.visited].T
        of_slot = self.labels[self.visited]
        positives, hard, drawn = mined
        losses = []
        for i in range(len(features)):
            same = of_slot == labels[i]
            mine, others = similarity[i][same], similarity[i][~same]
            if len(mine) < positives or len(others) < max(hard, drawn):
                continue
            hardest = mine.sort(descending=False)[0][:positives]
            hard_negatives = others.sort(descending=True)[0][:hard]
            random_negatives = others[torch.randperm(len(others))[:drawn]]
            for negatives in (hard_negatives, random_negatives):
                logits = torch.cat([hardest[:, None], negatives[None].repeat(positives, 1)], dim=1) / temperature
                losses.append(cross_entropy(logits, torch.zeros(positives, dtype=torch.int64, device=logits.device)))
        return torch.stack(losses).mean() if losses else features.sum() * 0


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
