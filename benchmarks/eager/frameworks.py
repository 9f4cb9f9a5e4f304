"""Training steps of the frameworks in plain eager PyTorch, in the usual style of the released code: the queue cloned
for every term, logits concatenated, the momentum update parameter by parameter, temporaries for every mask, a Python
loop over anchors. What those of skelops are measured against.

Clips are mixed by skelops.augment in either; names of parameters are those of skelops.methods.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks.eager.common import pooled
from skelops.augment import skelemix


def mlp(inputs: int, hidden: int, outputs: int, norm: bool = False, bias: bool = True) -> nn.Sequential:
    layers = [nn.Linear(inputs, hidden, bias), *([nn.BatchNorm1d(hidden)] if norm else [])]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(hidden, outputs, bias))


def multi_nce(logits: Tensor) -> Tensor:
    """-log(sum(softmax * mask) / sum(mask)), the positive in column 0."""
    mask = torch.zeros_like(logits)
    mask[:, 0] = 1
    return -torch.log((torch.softmax(logits, dim=1) * mask).sum(1) / mask.sum(1)).mean()


class Queue(nn.Module):
    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.register_buffer("queue", normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    def logits(self, q: Tensor, k: Tensor, temperature: float, extra: Tensor | None = None) -> Tensor:
        positive = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", q, self.copy())
        parts = [positive, negative]
        if extra is not None:
            parts.append(torch.einsum("nc,nc->n", q, extra.detach()).unsqueeze(-1))
        return torch.cat(parts, dim=1) / temperature

    # Compiled, the backward pass would make the copy anew, of a queue that has been written to by then.
    @torch.compiler.disable
    def copy(self) -> Tensor:
        return self.queue.clone().detach()

    # The pointer is read on the host: compiled, it would be compiled anew for every value.
    @torch.compiler.disable
    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        pointer, batch = int(self.queue_ptr), keys.shape[0]
        assert self.queue.shape[1] % batch == 0
        self.queue[:, pointer : pointer + batch] = keys.T
        self.queue_ptr[0] = (pointer + batch) % self.queue.shape[1]


class MoCo(nn.Module):
    """Query and key encoder, with the update of the latter."""

    encoder_q: Any
    encoder_k: Any
    queue: Any

    def __init__(self, encoder: Any, temperature: float, momentum: float) -> None:
        super().__init__()
        self.encoder_q, self.encoder_k = encoder, copy.deepcopy(encoder).requires_grad_(False)
        self.temperature, self.momentum = temperature, momentum

    @torch.no_grad()
    def update(self) -> None:
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.data = k.data * self.momentum + q.data * (1.0 - self.momentum)


class SkeletonCLR(MoCo):
    def __init__(self, encoder: Any, embedding: int, queue_size: int) -> None:
        encoder.fc = mlp(encoder.feature_dim, encoder.feature_dim, embedding)
        super().__init__(encoder, 0.07, 0.999)
        self.queue = Queue(embedding, queue_size)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        q = normalize(self.encoder_q.fc(self.encoder_q(query)), dim=1)
        with torch.no_grad():
            self.update()
            k = normalize(self.encoder_k.fc(self.encoder_k(key)), dim=1)
        label = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        loss = cross_entropy(self.queue.logits(q, k, self.temperature), label)
        self.queue.enqueue(k)
        return loss


class SkeleMixCLR(MoCo):
    def __init__(self, encoder: Any, embedding: int, queue_size: int) -> None:
        encoder.fc = mlp(encoder.feature_dim, encoder.feature_dim, embedding, norm=True)
        super().__init__(encoder, 0.2, 0.999)
        self.queue = Queue(embedding, queue_size)

    def mask_pool(self, features: Tensor, mask: Tensor, bodies: int) -> list[Tensor]:
        weights = mask.to(features.dtype).expand(len(features), 1, -1, -1)
        means = [(features * w).sum((2, 3)) / w.sum((2, 3)) for w in (weights, 1 - weights)]
        return [mean.view(-1, bodies, mean.shape[1]).mean(1) for mean in means]

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        mixes = [skelemix(query, "ntu") for _ in range(3)]
        q = normalize(self.encoder_q.fc(self.encoder_q(query)), dim=1)
        pairs = []
        for clips, mask, _ in mixes:
            features = self.mask_pool(self.encoder_q.feature_map(clips), mask, query.shape[4])
            pairs.append([normalize(self.encoder_q.fc(part), dim=1) for part in features])
        with torch.no_grad():
            self.update()
            k = normalize(self.encoder_k.fc(self.encoder_k(key)), dim=1)
        loss = multi_nce(self.queue.logits(q, k, self.temperature))
        for (_, _, partner), (p, c) in zip(mixes, pairs, strict=True):
            loss = loss + 0.5 * multi_nce(self.queue.logits(p, k[partner], self.temperature, c))
            loss = loss + 0.5 * multi_nce(self.queue.logits(c, k, self.temperature, p))
        self.queue.enqueue(k)
        return loss


class AttentionMask(nn.Module):
    def __init__(self, channels: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        B, C, T, V = x.shape
        tokens = self.norm(x.view(B, C, -1).permute(0, 2, 1))
        qkv = self.qkv(tokens).reshape(B, T * V, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        attention = (qkv[0] @ qkv[1].transpose(-2, -1) * (C // self.heads) ** -0.5).softmax(dim=-1)
        y = (attention @ qkv[2]).transpose(1, 2).reshape(B, T * V, C)
        return torch.sigmoid(2 * self.out(y)).permute(0, 2, 1).view(B, C, T, V)


class SkeAttnCLR(MoCo):
    def __init__(self, encoder: Any, embedding: int, queue_size: int) -> None:
        features = encoder.feature_dim
        encoder.fc = mlp(features, features, embedding, norm=True, bias=False)
        super().__init__(encoder, 0.2, 0.996)
        self.queue = Queue(embedding, queue_size)
        self.mask = AttentionMask(features)
        self.predictors = nn.ModuleDict(
            {name: mlp(embedding, features, embedding, norm=True, bias=False) for name in ("whole", "salient", "rest")}
        )

    def soft_pool(self, features: Tensor, mask: Tensor, bodies: int) -> list[Tensor]:
        return [pooled(features * m, bodies) for m in (mask, torch.ones_like(mask) - mask)]

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        mixed = skelemix(query, "ntu", parts=(3, 4), share=(4 / 16, 7 / 16)).clips
        bodies, project = query.shape[4], self.encoder_q.fc
        q = normalize(self.predictors["whole"](project(self.encoder_q(query))), dim=1)
        features = self.encoder_q.feature_map(mixed)
        mask = self.mask(features)
        salient, rest = (project(part) for part in self.soft_pool(features, mask, bodies))
        q_s = normalize(self.predictors["salient"](salient), dim=1)
        q_r = normalize(self.predictors["rest"](rest), dim=1)
        with torch.no_grad():
            self.update()
            features = self.encoder_k.feature_map(key)
            parts = pooled(features, bodies), *self.soft_pool(features, mask, bodies)
            k, k_s, k_r = (normalize(self.encoder_k.fc(part), dim=1) for part in parts)
        loss = multi_nce(self.queue.logits(q, k, self.temperature))
        loss = loss + 0.5 * multi_nce(self.queue.logits(q_s, k_s, self.temperature, q_r))
        loss = loss + 0.5 * multi_nce(self.queue.logits(q_r, k_r, self.temperature, q_s))
        self.queue.enqueue(k)
        return loss


class SCDNet(MoCo):
    def __init__(self, encoder: Any, hidden: int, embedding: int, queue_size: int) -> None:
        encoder.time, encoder.space = mlp(hidden, hidden, embedding), mlp(hidden, hidden, embedding)
        encoder.both = mlp(2 * hidden, hidden, embedding)
        super().__init__(encoder, 0.2, 0.999)
        self.queues: Any = nn.ModuleList(Queue(embedding, queue_size) for _ in range(3))

    def embed(self, encoder: Any, clips: Tensor) -> list[Tensor]:
        features = encoder(clips)
        time, space = features.chunk(2, dim=1)
        embeddings = encoder.time(time), encoder.space(space), encoder.both(features)
        return [normalize(x, dim=1) for x in embeddings]

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        q_t, q_s, q_i = self.embed(self.encoder_q, query)
        with torch.no_grad():
            self.update()
            k_t, k_s, k_i = self.embed(self.encoder_k, key)
        label = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        of_time, of_space, of_both = self.queues
        loss = cross_entropy(of_both.logits(q_t, k_i, self.temperature), label)
        loss = loss + cross_entropy(of_both.logits(q_s, k_i, self.temperature), label)
        loss = loss + cross_entropy(of_time.logits(q_i, k_t, self.temperature), label)
        loss = loss + cross_entropy(of_space.logits(q_i, k_s, self.temperature), label)
        for queue, keys in zip(self.queues, (k_t, k_s, k_i), strict=True):
            queue.enqueue(keys)
        return loss
