"""nt_xent at the contrasts of SDS-CL: joints and frames in clips, pair by pair as it is written; whole clips."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work

TEMPERATURE = 0.07
CROSSED = [(0, 1), (0, 3), (2, 1), (2, 3)]
Pairs = list[tuple[int, int]]


def released(tokens: Tensor, pairs: Pairs) -> Tensor:
    """Pair by pair: boolean masks select the partner and the others of each row, then cross-entropy."""
    losses = []
    for a, b in pairs:
        features = normalize(torch.cat([tokens[a], tokens[b]], 1), dim=2)
        N, R, _ = features.shape
        labels = torch.cat([torch.arange(R // 2)] * 2)
        partner = (labels[None, :] == labels[:, None]).to(tokens.device)
        own = torch.eye(R, dtype=torch.bool, device=tokens.device)
        products = torch.matmul(features, features.transpose(1, 2))
        partner = partner[~own].view(R, R - 1)
        products = products[~own.expand(N, R, R)].view(N, R, R - 1)
        positives = products[partner.expand(N, R, R - 1)].view(N, R, 1)
        negatives = products[~partner.expand(N, R, R - 1)].view(N, R, R - 2)
        logits = torch.cat([positives, negatives], 2).view(N * R, R - 1) / TEMPERATURE
        losses.append(cross_entropy(logits, torch.zeros(N * R, dtype=torch.long, device=tokens.device)))
    return torch.stack(losses)


def batched(tokens: Tensor, pairs: Pairs) -> Tensor:
    """The better-written eager form: all pairs in one product, the diagonal filled in."""
    unit = normalize(tokens, dim=-1)
    rows = torch.cat([torch.stack([unit[i] for i in sets]) for sets in zip(*pairs, strict=True)], 2)
    P = tokens.shape[2]
    logits = rows @ rows.mT / TEMPERATURE
    partner = logits.roll(P, -1).diagonal(dim1=-2, dim2=-1)
    own = torch.eye(2 * P, dtype=torch.bool, device=tokens.device)
    return (logits.masked_fill(own, -torch.inf).logsumexp(-1) - partner).mean((1, 2))


def case(
    S: int, N: int, P: int, D: int, pairs: Pairs, dtype: torch.dtype = torch.float32, headline: bool = False
) -> Case:
    def inputs() -> tuple[Tensor]:
        return (torch.randn(S, N, P, D).to(dtype).requires_grad_(),)

    moved, block, G = float(dtype.itemsize * S * N * P * D), 2.0 * N * P * P * D, len(pairs)
    return Case(
        op="nt_xent",
        name=f"G={G} S={S} N={N} P={P} D={D}",
        dtype=dtype,
        inputs=inputs,
        skelops=lambda tokens: skelops.nt_xent(tokens, pairs, TEMPERATURE),
        eager=lambda tokens: released(tokens, pairs),
        forward=Work(moved, block * (S + G)),
        backward=Work(3 * moved, block * (2 * S + 3 * G)),
        others={"batched": lambda tokens: batched(tokens, pairs)},
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    dtypes = GPU_DTYPES if device == "cuda" else (torch.float32, torch.bfloat16)
    for dtype in dtypes:
        for P in (25, 13):
            yield case(4, 16, P, 256, CROSSED, dtype, headline=P == 25)
        for P in (16, 128):
            yield case(2, 1, P, 1024, [(0, 1)], dtype, headline=P == 128)
        yield case(4, 64, 25, 256, CROSSED, dtype)
        yield case(2, 64, 64, 128, [(0, 1)], dtype)
        yield case(2, 1, 64, 256, [(0, 1)], dtype)
