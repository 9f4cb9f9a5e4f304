"""The two-branch encoder of SCD-Net (Wu et al., AAAI 2024)."""

from __future__ import annotations

from typing import ClassVar

import torch
from skelops.methods.encoders.ctr_gcn import ctr_unit
from skelops.methods.encoders.encoder import Encoder
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

import skelops
from skelops.graphs import Layout, adjacency
from skelops.nn import Linear
from skelops.ops.squeeze_pool import SqueezePool


class Trunk(nn.Module):
    """CTR-GCN trimmed to three units without strides, by the released names."""

    def __init__(self, bodies: int, in_channels: int, width: int, graph: Tensor) -> None:
        super().__init__()
        self.data_bn = nn.BatchNorm1d(bodies * in_channels * graph.shape[1])
        self.l1 = ctr_unit(in_channels, width, graph, has_residual=False)
        self.l2 = ctr_unit(width, 4 * width, graph)
        self.l3 = ctr_unit(4 * width, width, graph)


def _embedding(inputs: int, hidden_dim: int) -> nn.Sequential:
    return nn.Sequential(
        Linear(inputs, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU(), Linear(hidden_dim, hidden_dim)
    )


class TransformerLayer(nn.Module):
    """`torch.nn.TransformerEncoderLayer` (normalised after each part, ReLU) on `skelops.linear`, by the same names."""

    def __init__(self, hidden_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.self_attn = nn.MultiheadAttention(hidden_dim, heads, dropout)
        self.linear1, self.linear2 = Linear(hidden_dim, hidden_dim), Linear(hidden_dim, hidden_dim)
        self.norm1, self.norm2 = nn.LayerNorm(hidden_dim), nn.LayerNorm(hidden_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(tokens, N, hidden_dim) -> the same."""
        x = self.norm1(tokens + self._drop(self._attend(tokens)))
        return self.norm2(x + self._drop(self.linear2(self._drop(self.linear1(x).relu()))))

    def _attend(self, tokens: Tensor) -> Tensor:
        L, N, D = tokens.shape
        attn = self.self_attn
        qkv = skelops.linear(tokens, attn.in_proj_weight, attn.in_proj_bias)
        query, key, value = qkv.view(L, N, 3, self.heads, -1).permute(2, 1, 3, 0, 4)
        y = scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return skelops.linear(y.permute(2, 0, 1, 3).reshape(L, N, D), attn.out_proj.weight, attn.out_proj.bias)

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class Transformer(nn.Module):
    """One `TransformerLayer`, by the names of `torch.nn.TransformerEncoder`."""

    def __init__(self, hidden_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList([TransformerLayer(hidden_dim, heads, dropout)])

    def forward(self, tokens: Tensor) -> Tensor:
        """(tokens, N, hidden_dim) -> the same."""
        return self.layers[0](tokens)


class SCDEncoder(Encoder):
    """Clips (N, C, T, V, M) to features (N, 2 hidden_dim): those of time, then those of space.

    Each branch is a trimmed CTR-GCN of its own (widths w, 4w, w; frames stay T), whose map is cut into tokens (one per
    frame, or one per joint and body), embedded, and passed through one transformer layer; the maximum over tokens is
    the feature of the branch. Names are those of the released ``scd_encoder.py`` (``gcn_t``, ``gcn_s``, ``channel_t``,
    ``channel_s``, ``t_encoder``, ``s_encoder``).

    Args:
        layout: joint layout, fixes V.
        in_channels: C, coordinates per joint.
        bodies: M.
        frames: T, which fixes the size of the embedding of joints.
        width: w, a multiple of 4.
        hidden_dim: width of the transformers.
        heads: of the transformers, a divisor of their width.
        dropout: of the transformers.

    Raises:
        ValueError: unknown layout, a size is out of range, or clips of another shape.
    """

    temporal_stride = 1
    pools_its_map = False
    multiples: ClassVar = {"width": 4}

    def __init__(
        self,
        layout: str | Layout = "ntu",
        in_channels: int = 3,
        bodies: int = 2,
        frames: int = 64,
        width: int = 64,
        hidden_dim: int = 2048,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            layout,
            in_channels,
            2 * hidden_dim,
            bodies=bodies,
            frames=frames,
            width=width,
            hidden_dim=hidden_dim,
            heads=heads,
            dropout=dropout,
        )
        if hidden_dim % heads:
            raise ValueError(f"heads: expected a divisor of hidden_dim={hidden_dim}, got {heads}")
        self.frames = frames
        graph = adjacency(self.layout, "agcn")
        self.gcn_t = Trunk(bodies, in_channels, width, graph)
        self.gcn_s = Trunk(bodies, in_channels, width, graph)
        self.channel_t = _embedding(bodies * self.layout.num_joints * width, hidden_dim)
        self.channel_s = _embedding(frames * width, hidden_dim)
        self.t_encoder = Transformer(hidden_dim, heads, dropout)
        self.s_encoder = Transformer(hidden_dim, heads, dropout)

    def feature_map(self, clips: Tensor) -> Tensor:
        """The last map of the temporal branch, (N * M, width, T, V), clip-major."""
        return self._trunk(self.gcn_t, clips)

    @property
    def map_channels(self) -> int:
        """Width of the trunks."""
        return self.arguments["width"]

    def features(self, clips: Tensor) -> Tensor:
        """Features (N, 2 hidden_dim) of both branches."""
        return self._features_and_map(clips)[0]

    def features_and_squeezes(self, clips: Tensor) -> tuple[Tensor, SqueezePool]:
        """Features, and the squeezes of `feature_map`."""
        features, last = self._features_and_map(clips)
        return features, skelops.squeeze_pool(last, bodies=clips.shape[4])

    def _features_and_map(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        N, _, T, V, M = self._check(clips)
        if self.frames != T:
            raise ValueError(f"clips: expected {self.frames} frames, got {T}")
        # Rows of maps are (n, m, t, v) with channels along them, so that tokens are copied in long pieces.
        last = self.feature_map(clips)
        of_time = last.unflatten(0, (N, M)).permute(3, 0, 1, 4, 2).reshape(T, N, -1)
        of_space = self._trunk(self.gcn_s, clips).unflatten(0, (N, M)).permute(1, 4, 0, 3, 2).reshape(M * V, N, -1)
        v_t = self.t_encoder(self.channel_t(of_time)).amax(0)
        v_s = self.s_encoder(self.channel_s(of_space)).amax(0)
        return torch.cat([v_t, v_s], dim=1), last

    def _trunk(self, trunk: Trunk, clips: Tensor) -> Tensor:
        x = self._bodies(clips, trunk.data_bn, together=True)
        for unit in (trunk.l1, trunk.l2, trunk.l3):
            x = self._run(unit, x)
        return x
