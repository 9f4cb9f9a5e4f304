"""The adaptive graph convolution of 2s-AGCN."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from skelops.nn.batch_norm import uses_batch_statistics
from skelops.nn.recomputing import recomputed
from skelops.nn.scaled import initialise, join, normalised, pointwise, shortcut, stacked
from skelops.ops.graph_conv import graph_conv
from skelops.ops.joint_attention import joint_attention


class AdaptiveGraphConv(nn.Module):
    """``relu(BN(sum_k W_k X (A_k + P_k + C_k)) + down(X))`` with a topology of its own for every sample::

        C_k[v,w] = softmax_v(sum_{c,t} theta_k(X)[c,t,v] phi_k(X)[c,t,w] / (embedded channels * T))

    theta_k and phi_k are 1x1 convolutions to a quarter of the output channels; A is fixed, P learned. Parameter names
    follow the released ``unit_gcn`` (``PA``, ``conv_a.{k}``, ``conv_b.{k}``, ``conv_d.{k}``, ``bn``, ``down.0``,
    ``down.1``).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, a multiple of 4.
        adjacency: A, (K, V, V).

    Raises:
        ValueError: the output channels are no multiple of 4.

    Shi et al., "Two-Stream Adaptive Graph Convolutional Networks" (CVPR 2019), equations 3 to 5.
    """

    A: Tensor

    def __init__(self, in_channels: int, out_channels: int, adjacency: Tensor) -> None:
        super().__init__()
        if out_channels % 4:
            raise ValueError(f"out_channels: expected a multiple of 4, got {out_channels}")
        subsets, embedded = len(adjacency), out_channels // 4
        self.register_buffer("A", adjacency.clone(), persistent=False)
        self.PA = nn.Parameter(torch.full_like(adjacency, 1e-6))
        self.conv_a = nn.ModuleList(nn.Conv2d(in_channels, embedded, 1) for _ in range(subsets))
        self.conv_b = nn.ModuleList(nn.Conv2d(in_channels, embedded, 1) for _ in range(subsets))
        self.conv_d = nn.ModuleList(nn.Conv2d(in_channels, out_channels, 1) for _ in range(subsets))
        self.bn = nn.BatchNorm2d(out_channels)
        self.down = shortcut(in_channels, out_channels)
        initialise(self)
        for weight in self.conv_d.parameters():
            if weight.dim() == 4:
                nn.init.normal_(weight, 0, math.sqrt(2 / (weight.numel() * subsets)))
        nn.init.constant_(self.bn.weight, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, out_channels, T, V)."""
        subsets = len(self.A)
        source, target = pointwise(x, [*self.conv_a, *self.conv_b], embeds=True).chunk(2, dim=1)
        topology = joint_attention(source, target, self.A + self.PA, heads=subsets, activation="softmax")
        weight, bias = stacked(self.conv_d)
        assert bias is not None
        y = graph_conv(
            x,
            weight.view(subsets, -1, x.shape[1]),
            topology,
            bias.view(subsets, -1).sum(0),
            stats=uses_batch_statistics(self.bn),
        )
        return recomputed(join, normalised(y, self.bn), self.down(x))
