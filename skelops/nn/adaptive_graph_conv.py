"""The adaptive graph convolution of 2s-AGCN."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from skelops.nn.batch_norm import BatchNormAct2d
from skelops.nn.scaled import Shortcut, join, normalised, pointwise
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

    Shi et al., "Two-Stream Adaptive Graph Convolutional Networks" (CVPR 2019), equations 3 to 5.
    """

    A: Tensor

    def __init__(self, in_channels: int, out_channels: int, adjacency: Tensor) -> None:
        super().__init__()
        subsets, embedded = len(adjacency), out_channels // 4
        self.register_buffer("A", adjacency.clone(), persistent=False)
        self.PA = nn.Parameter(torch.full_like(adjacency, 1e-6))
        self.conv_a = nn.ModuleList(nn.Conv2d(in_channels, embedded, 1) for _ in range(subsets))
        self.conv_b = nn.ModuleList(nn.Conv2d(in_channels, embedded, 1) for _ in range(subsets))
        self.conv_d = nn.ModuleList(nn.Conv2d(in_channels, out_channels, 1) for _ in range(subsets))
        self.bn = BatchNormAct2d(out_channels)
        self.down = Shortcut(in_channels, out_channels)
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.dim() == 4:
                nn.init.kaiming_normal_(parameter, mode="fan_out")
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        for conv in self.conv_d:
            nn.init.normal_(conv.weight, 0, math.sqrt(2 / (conv.weight.numel() * subsets)))
        nn.init.constant_(self.bn.weight, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, out_channels, T, V)."""
        subsets, half = len(self.A), sum(conv.out_channels for conv in self.conv_a)
        embedded = pointwise(x, [*self.conv_a, *self.conv_b])
        assert isinstance(embedded, Tensor)
        topology = joint_attention(
            embedded[:, :half], embedded[:, half:], self.A + self.PA, heads=subsets, activation="softmax"
        )
        weight = torch.stack([conv.weight.flatten(1) for conv in self.conv_d])
        bias = torch.stack([conv.bias for conv in self.conv_d]).sum(0)
        y = graph_conv(x, weight, topology, bias, stats=self.bn.uses_batch_statistics)
        return join(normalised(y, self.bn), self.down(x))
