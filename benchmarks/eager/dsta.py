"""DSTA-Net as SDS-CL releases it: spatial attention with tanh, feed-forward, a 7x1 convolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.eager.common import pooled
from skelops.graphs import get_layout


def conv_bn(inputs: int, outputs: int, kernel_size: int = 1, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, (kernel_size, 1), (stride, 1), (kernel_size // 2, 0))
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class PositionalEncoding(nn.Module):
    pe: Tensor

    def __init__(self, channels: int, joints: int) -> None:
        super().__init__()
        angle = torch.arange(joints)[:, None] * torch.exp(torch.arange(0, channels, 2) * (-math.log(1e4) / channels))
        pe = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
        self.register_buffer("pe", pe.T[None, :, None])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe


class STAttentionBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, inner: int, stride: int, subsets: int, joints: int) -> None:
        super().__init__()
        self.subsets, self.inner = subsets, inner
        self.pes = PositionalEncoding(inputs, joints)
        self.ff_nets = conv_bn(outputs, outputs)
        self.in_nets = nn.Conv2d(inputs, 2 * subsets * inner, 1)
        self.alphas = nn.Parameter(torch.ones(1, subsets, 1, 1))
        self.attention0s = nn.Parameter(torch.ones(1, subsets, joints, joints) / joints)
        self.out_nets = conv_bn(inputs * subsets, outputs)
        self.out_nett = conv_bn(outputs, outputs, 7, stride)
        changes = inputs != outputs or stride != 1
        self.downs1 = conv_bn(inputs, outputs) if changes else nn.Identity()
        self.downs2 = conv_bn(inputs, outputs) if changes else nn.Identity()
        self.downt2 = conv_bn(outputs, outputs, 1, stride) if changes else nn.Identity()
        self.relu = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        N, C, T, V = x.shape
        q, k = self.in_nets(self.pes(x)).view(N, 2 * self.subsets, self.inner, T, V).chunk(2, dim=1)
        attention = torch.tanh(torch.einsum("nsctu,nsctv->nsuv", q, k) / (self.inner * T)) * self.alphas
        attention = attention + self.attention0s.repeat(N, 1, 1, 1)
        y = torch.einsum("nctu,nsuv->nsctv", x, attention).contiguous().view(N, self.subsets * C, T, V)
        y = self.relu(self.downs1(x) + self.out_nets(y))
        y = self.relu(self.downs2(x) + self.ff_nets(y))
        return self.relu(self.downt2(y) + self.out_nett(y))


class DSTA(nn.Module):
    def __init__(self, layout: str = "ntu", in_channels: int = 3, width: int = 64, subsets: int = 4) -> None:
        super().__init__()
        joints = get_layout(layout).num_joints
        self.input_map = nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.BatchNorm2d(width), nn.LeakyReLU(0.1))
        widths = [width] * 2 + [2 * width] * 2 + [4 * width] * 4
        self.graph_layers = nn.ModuleList(
            STAttentionBlock(inputs, outputs, outputs // 4, 1 if inputs == outputs else 2, subsets, joints)
            for inputs, outputs in zip([width, *widths], widths, strict=False)
        )

    def feature_map(self, clips: Tensor) -> Tensor:
        N, C, T, V, M = clips.shape
        x = self.input_map(clips.permute(0, 4, 1, 2, 3).contiguous().view(N * M, C, T, V))
        for block in self.graph_layers:
            x = block(x)
        return x

    def forward(self, clips: Tensor) -> Tensor:
        return pooled(self.feature_map(clips), clips.shape[4])
