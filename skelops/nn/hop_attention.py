"""The hypergraph self-attention of Hyperformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, one_hot

from skelops._checks import divides_channels
from skelops.nn.recomputing import recomputed
from skelops.nn.scaled import pointwise
from skelops.ops.aggregate import aggregate
from skelops.ops.hop_attention import hop_attention

#: Of the channels in the convolution after the attention.
GROUPS = 6


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # Channels lie along the rows of a channels_last map, so that this is no copy.
    return layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias).permute(0, 3, 1, 2)


class MultiHeadAttention(nn.Module):
    """Parameters of the attention, by the names of the released ``MHSA``."""

    hops: Tensor

    def __init__(self, in_channels: int, channels: int, heads: int, hops: Tensor) -> None:
        super().__init__()
        self.register_buffer("hops", hops.clone(), persistent=False)
        self.rpe = nn.Parameter(torch.zeros(int(hops.max()) + 1, channels))
        self.w1 = nn.Parameter(torch.zeros(heads, channels // heads))
        self.outer = nn.Parameter(torch.eye(len(hops)).repeat(heads, 1, 1))
        self.alpha = nn.Parameter(torch.zeros(1))
        self.kv = nn.Conv2d(in_channels, 2 * channels, 1, bias=False)
        self.q = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.proj = nn.Conv2d(channels, channels, 1, groups=GROUPS)


class HopAttention(nn.Module):
    """``skip(x) + proj(attention(LayerNorm(x)))``: every frame attends over joints, head by head.

    The score of source v and target w is the product of the query with the key, with an embedding of their distance
    along the skeleton, and with that of the body part of v (the mean of its joints, projected), plus a bias by body
    part. ``alpha * softmax + outer`` is applied to the values (`skelops.hop_attention`). Parameter names follow the
    released ``unit_vit`` (``norm1``, ``attn.rpe``, ``attn.w1``, ``attn.outer``, ``attn.alpha``, ``attn.kv``,
    ``attn.q``, ``attn.proj``, ``skip_proj``, ``pe_proj``); as there, ``outer[h, w, v]`` carries joint v to joint w.

    Args:
        in_channels: channels of the input.
        channels: channels of the output, a multiple of 6 and of the heads.
        heads: H.
        hops: edges between joints, (V, V) int64.
        parts: body part of every joint, (V,) int64.

    Raises:
        ValueError: the output channels are no multiple of 6, or the heads do not divide them.

    Zhou et al., "Hypergraph Transformer for Skeleton-Based Action Recognition" (2022), equations 7 and 8.
    """

    part_mean: Tensor
    parts: Tensor

    def __init__(self, in_channels: int, channels: int, heads: int, hops: Tensor, parts: Tensor) -> None:
        super().__init__()
        divides_channels("heads", heads, channels)
        if channels % GROUPS:
            raise ValueError(f"channels: expected a multiple of {GROUPS}, got {channels}")
        self.heads = heads
        members = one_hot(parts).float()
        self.register_buffer("parts", parts.clone(), persistent=False)
        self.register_buffer("part_mean", (members / members.sum(0))[None], persistent=False)
        self.norm1 = nn.LayerNorm(in_channels)
        self.attn = MultiHeadAttention(in_channels, channels, heads, hops)
        self.skip_proj = nn.Conv2d(in_channels, channels, 1, bias=False) if in_channels != channels else None
        self.pe_proj = nn.Conv2d(in_channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, channels, T, V)."""
        attn, channels = self.attn, self.attn.q.out_channels
        qkv = pointwise(recomputed(_layer_norm, x, self.norm1.weight, self.norm1.bias), [attn.q, attn.kv])
        part_key = pointwise(aggregate(x, self.part_mean, axes="kvw", sum_subsets=True), [self.pe_proj])
        y = hop_attention(
            qkv,
            part_key,
            attn.rpe.view(-1, self.heads, channels // self.heads).transpose(0, 1),
            attn.w1,
            attn.outer.mT,
            attn.alpha,
            attn.hops,
            self.parts,
            heads=self.heads,
        )
        y = pointwise(y, [attn.proj], attn.proj.groups)
        return y + (x if self.skip_proj is None else pointwise(x, [self.skip_proj]))
