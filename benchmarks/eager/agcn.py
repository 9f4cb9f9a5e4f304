"""2s-AGCN's stream in its released style: per subset, softmax of a product of embeddings, matmul, convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.eager.common import UnitEncoder, UnitTCN, residual, ten_blocks
from skelops.graphs import adjacency


class UnitGCN(nn.Module):
    A: Tensor

    def __init__(self, inputs: int, outputs: int, A: Tensor) -> None:
        super().__init__()
        embedded = outputs // 4
        self.register_buffer("A", A, persistent=False)
        self.PA = nn.Parameter(torch.full_like(A, 1e-6))
        self.conv_a = nn.ModuleList(nn.Conv2d(inputs, embedded, 1) for _ in range(3))
        self.conv_b = nn.ModuleList(nn.Conv2d(inputs, embedded, 1) for _ in range(3))
        self.conv_d = nn.ModuleList(nn.Conv2d(inputs, outputs, 1) for _ in range(3))
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.constant_(self.bn.weight, 1e-6)
        self.down = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))
        )
        self.soft = nn.Softmax(-2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        N, C, T, V = x.shape
        A = self.A + self.PA
        y = None
        for i in range(3):
            A1 = self.conv_a[i](x).permute(0, 3, 1, 2).contiguous().view(N, V, -1)
            A2 = self.conv_b[i](x).view(N, -1, V)
            A1 = self.soft(torch.matmul(A1, A2) / A1.size(-1)) + A[i]
            z = self.conv_d[i](torch.matmul(x.view(N, C * T, V), A1).view(N, C, T, V))
            y = z if y is None else y + z
        return self.relu(self.bn(y) + self.down(x))


class Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, A: Tensor, stride: int, has_residual: bool) -> None:
        super().__init__()
        self.gcn1 = UnitGCN(inputs, outputs, A)
        self.tcn1 = UnitTCN(outputs, outputs, 9, stride)
        self.residual = residual(inputs, outputs, stride) if has_residual else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tcn1(self.gcn1(x))
        return self.relu(y if self.residual is None else y + self.residual(x))


class AGCN(UnitEncoder):
    def __init__(self, layout: str = "ntu", in_channels: int = 3, bodies: int = 2, width: int = 64) -> None:
        A, blocks = adjacency(layout, "agcn"), enumerate(ten_blocks(in_channels, width))
        units = (Unit(inputs, outputs, A, stride, i > 0) for i, (inputs, outputs, stride) in blocks)
        super().__init__(layout, in_channels, bodies, units)
