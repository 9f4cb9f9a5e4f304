"""CTR-GCN in its released style: three channel-wise topologies per unit, each built, stored and applied by einsum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.eager.common import MultiScaleTCN, UnitEncoder, residual, ten_blocks
from skelops.graphs import adjacency


class CTRGC(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        reduced = 8 if inputs in (3, 9) else inputs // 8
        self.conv1 = nn.Conv2d(inputs, reduced, 1)
        self.conv2 = nn.Conv2d(inputs, reduced, 1)
        self.conv3 = nn.Conv2d(inputs, outputs, 1)
        self.conv4 = nn.Conv2d(reduced, outputs, 1)

    def forward(self, x: Tensor, A: Tensor, alpha: Tensor) -> Tensor:
        x1, x2, x3 = self.conv1(x).mean(-2), self.conv2(x).mean(-2), self.conv3(x)
        x1 = torch.tanh(x1.unsqueeze(-1) - x2.unsqueeze(-2))
        x1 = self.conv4(x1) * alpha + A.unsqueeze(0).unsqueeze(0)
        return torch.einsum("ncuv,nctv->nctu", x1, x3)


class UnitGCN(nn.Module):
    def __init__(self, inputs: int, outputs: int, A: Tensor) -> None:
        super().__init__()
        self.convs = nn.ModuleList(CTRGC(inputs, outputs) for _ in range(3))
        self.down = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))
        )
        # The released topology is contracted over its second joint axis.
        self.PA = nn.Parameter(A.mT.contiguous())
        self.alpha = nn.Parameter(torch.zeros(1))
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.constant_(self.bn.weight, 1e-6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = None
        for i in range(3):
            z = self.convs[i](x, self.PA[i], self.alpha)
            y = z + y if y is not None else z
        return self.relu(self.bn(y) + self.down(x))


class Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, A: Tensor, stride: int = 1, has_residual: bool = True) -> None:
        super().__init__()
        self.gcn1 = UnitGCN(inputs, outputs, A)
        self.tcn1 = MultiScaleTCN(outputs, stride)
        self.relu = nn.ReLU(inplace=True)
        self.residual = residual(inputs, outputs, stride) if has_residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.tcn1(self.gcn1(x))
        return self.relu(y if self.residual is None else y + self.residual(x))


class CTRGCN(UnitEncoder):
    def __init__(self, layout: str = "ntu", in_channels: int = 3, bodies: int = 2, width: int = 64) -> None:
        A, blocks = adjacency(layout, "agcn"), enumerate(ten_blocks(in_channels, width))
        units = (Unit(inputs, outputs, A, stride, i > 0) for i, (inputs, outputs, stride) in blocks)
        super().__init__(layout, in_channels, bodies, units)
