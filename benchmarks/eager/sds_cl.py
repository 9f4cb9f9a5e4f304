"""A training step of SDS-CL as released: einsum attentions, one contrast per pair of token sets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench_nt_xent import CROSSED, released
from benchmarks.eager.dsta import conv_bn
from benchmarks.eager.frameworks import mlp


class StreamAttention(nn.Module):
    def __init__(self, channels: int, heads: int, axis: str, inter: bool) -> None:
        super().__init__()
        self.heads, self.axis = heads, axis
        self.query = nn.Conv2d(channels, channels, 1) if inter else None
        self.maps = nn.Conv2d(channels, (2 if inter else 3) * channels, 1)
        self.out = conv_bn(channels, channels)
        self.relu = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        N, C, T, V = x.shape
        if self.query is None:
            q, k, v = self.maps(x).chunk(3, dim=1)
        else:
            q, (k, v) = self.query(x), self.maps(other).chunk(2, dim=1)
        q, k, v = (y.reshape(N, self.heads, C // self.heads, T, V) for y in (q, k, v))
        if self.axis == "joints":
            attention = torch.tanh(torch.einsum("nsctu,nsctv->nsuv", q, k) / (C // self.heads * T))
            y = torch.einsum("nsuv,nsctv->nsctu", attention, v)
        else:
            attention = torch.tanh(torch.einsum("nsctv,nscqv->nstq", q, k) / (C // self.heads * V))
            y = torch.einsum("nstq,nscqv->nsctv", attention, v)
        return self.relu(x + self.out(y.contiguous().view(N, C, T, V)))


class SDSCL(nn.Module):
    encoder_q: Any

    def __init__(self, encoder: Any, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.encoder_q = encoder
        self.attention = nn.ModuleDict(
            {
                f"{axis}_{kind}": StreamAttention(channels, heads, axis, kind == "inter")
                for axis in ("joints", "frames")
                for kind in ("intra", "inter")
            }
        )
        self.token_projector = mlp(channels, channels, channels)
        self.global_projector = mlp(4 * channels, 4 * channels, 4 * channels)

    def forward(self, joint: Tensor, motion: Tensor) -> Tensor:
        N, bodies = joint.shape[0], joint.shape[4]
        y_j, y_m = self.encoder_q.feature_map(torch.cat([joint, motion])).chunk(2)
        C, T, V = y_j.shape[1:]
        loss = torch.zeros((), device=joint.device)
        maps: dict[str, list[Tensor]] = {"joint": [], "motion": []}
        for axis in ("joints", "frames"):
            intra, inter = self.attention[f"{axis}_intra"], self.attention[f"{axis}_inter"]
            found = intra(y_j), intra(y_m), inter(y_j, y_m), inter(y_m, y_j)
            maps["joint"] += [found[0], found[2]]
            maps["motion"] += [found[1], found[3]]
            means = [y.view(N, bodies, C, T, V).mean(1).mean(3 if axis == "joints" else 2) for y in found]
            tokens = [self.token_projector(mean.permute(0, 2, 1)) for mean in means]
            loss = loss + released(torch.stack(tokens), CROSSED).sum()
        whole = []
        for stream in maps.values():
            joined = torch.cat(stream, dim=1)
            joined = joined.view(N, bodies, 4 * C, T, V).mean(4).mean(3).mean(1)
            whole.append(self.global_projector(joined)[None])
        return loss + released(torch.stack(whole), [(0, 1)]).sum()
