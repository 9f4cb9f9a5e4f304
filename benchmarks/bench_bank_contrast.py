"""bank_contrast: the loop over anchors of STD-CL's released code, and the same batched, for whole data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work
from benchmarks.eager.std_cl import bank_contrast
from skelops.ops.norm_act.reference import hashes

POSITIVES, HARD, RANDOM, TEMPERATURE = 128, 512, 512, 0.8


def released(
    features: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    visited: Tensor,
    seed: Tensor,
    drawn: Tensor,
) -> Tensor:
    """As the released code computes it; it draws on the host, too, but takes the op's draw, so that results agree."""
    features = normalize(features.float(), dim=1)
    mined = POSITIVES, HARD, RANDOM
    return bank_contrast(features, labels, bank, bank_labels, visited, mined, TEMPERATURE, drawn)


def batched(
    features: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    visited: Tensor,
    seed: Tensor,
    drawn: Tensor,
) -> Tensor:
    """The better-written eager form: all anchors at once, top-k instead of sorts, no expanded logits."""
    similarity = normalize(features.float(), dim=1) @ bank.float().T
    same = labels[:, None] == bank_labels
    positive = similarity.masked_fill(~(same & visited), torch.inf).topk(POSITIVES, largest=False)[0]
    hard = similarity.masked_fill(~(~same & visited), -torch.inf).topk(HARD)[0]
    kept = ((same & visited).sum(1) >= POSITIVES) & ((~same & visited).sum(1) >= max(HARD, RANDOM))
    lse = torch.stack([(x / TEMPERATURE).logsumexp(1) for x in (hard, similarity.gather(1, drawn))], 1)
    losses = softplus(lse[:, None] - positive[:, :, None] / TEMPERATURE).mean((1, 2))
    return torch.where(kept, losses, 0).sum() / kept.sum().clamp_min(1)


def fused(
    features: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    visited: Tensor,
    seed: Tensor,
    drawn: Tensor,
) -> Tensor:
    return skelops.bank_contrast(features, labels, bank, bank_labels, visited, seed).loss


def case(N: int, D: int, Q: int, classes: int, dtype: torch.dtype = torch.float32, headline: bool = False) -> Case:
    def inputs() -> tuple[Any, ...]:
        # Every similarity is exact, and of equal ones the first slots are taken: all ways choose the same slots.
        features, bank = torch.eye(N, D).to(dtype), normalize(torch.randn(Q, D), dim=1).bfloat16().to(dtype)
        labels, bank_labels = torch.arange(N) % classes, torch.arange(Q) % classes
        seed = torch.tensor([1])
        keys = hashes(torch.arange(N * Q).view(N, Q), seed).masked_fill(labels[:, None] == bank_labels, 2**32)
        drawn = keys.topk(RANDOM, largest=False)[1]
        return features.requires_grad_(), labels, bank, bank_labels, torch.ones(Q, dtype=torch.bool), seed, drawn

    size, chosen = dtype.itemsize, POSITIVES + HARD + RANDOM
    moved = float(size * D * (Q + N) + 9 * Q)
    return Case(
        op="bank_contrast",
        name=f"N={N} D={D} Q={Q} classes={classes}",
        dtype=dtype,
        inputs=inputs,
        skelops=fused,
        eager=released,
        forward=Work(moved, 2.0 * N * D * Q),
        backward=Work(moved + size * N * D, 2.0 * N * D * (Q + chosen)),
        others={"batched": batched},
        compiles=False,
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    if device == "cuda":
        for dtype in GPU_DTYPES:
            yield case(64, 256, 40091, 60, dtype, headline=True)
            for N, D, Q, classes in (
                (64, 256, 63026, 120),
                (256, 256, 40091, 60),
                (16, 256, 40091, 60),
                (64, 128, 16384, 60),
                (64, 512, 40091, 60),
                (16, 256, 2048, 10),
            ):
                yield case(N, D, Q, classes, dtype)
        return
    yield case(64, 256, 40091, 60, headline=True)
    yield case(16, 256, 2048, 10)
    yield case(64, 256, 40091, 60, torch.bfloat16)
    yield case(64, 256, 63026, 120)
