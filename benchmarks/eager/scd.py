"""SCD-Net's encoder in its released style: two trimmed CTR-GCNs, tokens over frames and joints, a transformer each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.eager.common import normalized_bodies
from benchmarks.eager.ctr_gcn import Unit
from skelops.graphs import adjacency, get_layout


class Trunk(nn.Module):
    def __init__(self, layout: str, in_channels: int, bodies: int, width: int) -> None:
        super().__init__()
        A = adjacency(layout, "agcn")
        self.data_bn = nn.BatchNorm1d(bodies * in_channels * get_layout(layout).num_joints)
        self.l1 = Unit(in_channels, width, A, has_residual=False)
        self.l2 = Unit(width, 4 * width, A)
        self.l3 = Unit(4 * width, width, A)

    def forward(self, clips: Tensor) -> Tensor:
        return self.l3(self.l2(self.l1(normalized_bodies(clips, self.data_bn))))


def embedding(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden))


def transformer(hidden: int, heads: int, dropout: float) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(hidden, heads, hidden, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


class SCDEncoder(nn.Module):
    def __init__(
        self,
        layout: str = "ntu",
        in_channels: int = 3,
        bodies: int = 2,
        frames: int = 64,
        width: int = 64,
        hidden_dim: int = 2048,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        joints = get_layout(layout).num_joints
        self.gcn_t = Trunk(layout, in_channels, bodies, width)
        self.gcn_s = Trunk(layout, in_channels, bodies, width)
        self.channel_t = embedding(joints * bodies * width, hidden_dim)
        self.channel_s = embedding(frames * width, hidden_dim)
        self.t_encoder = transformer(hidden_dim, heads, dropout)
        self.s_encoder = transformer(hidden_dim, heads, dropout)

    def forward(self, clips: Tensor) -> Tensor:
        N, _, T, V, M = clips.shape
        of_time = self.gcn_t(clips).view(N, M, -1, T, V).permute(0, 3, 1, 4, 2).reshape(N, T, -1)
        of_space = self.gcn_s(clips).view(N, M, -1, T, V).permute(0, 1, 4, 3, 2).reshape(N, M * V, -1)
        v_t = self.t_encoder(self.channel_t(of_time)).amax(1)
        v_s = self.s_encoder(self.channel_s(of_space)).amax(1)
        return torch.cat([v_t, v_s], dim=1)
