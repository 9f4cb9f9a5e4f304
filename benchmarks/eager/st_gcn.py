"""ST-GCN as SkeleMixCLR releases it: conv 1x1, einsum, BN, ReLU, conv 9x1, BN, dropout, residual, ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.eager.common import pooled
from skelops.graphs import adjacency


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, has_residual: bool) -> None:
        super().__init__()
        self.gcn = nn.ModuleDict({"conv": nn.Conv2d(inputs, 3 * outputs, 1)})
        self.tcn = nn.Sequential(
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, (9, 1), (stride, 1), (4, 0)),
            nn.BatchNorm2d(outputs),
            nn.Dropout(dropout, inplace=True),
        )
        self.relu = nn.ReLU(inplace=True)
        self.residual: nn.Module | None = None
        if has_residual and inputs == outputs and stride == 1:
            self.residual = nn.Identity()
        elif has_residual:
            self.residual = nn.Sequential(nn.Conv2d(inputs, outputs, 1, (stride, 1)), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, A: Tensor) -> Tensor:
        y = self.gcn["conv"](x)
        y = y.view(y.shape[0], 3, -1, *y.shape[2:])
        y = self.tcn(torch.einsum("nkctv,kvw->nctw", y, A).contiguous())
        return self.relu(y if self.residual is None else y + self.residual(x))


class STGCN(nn.Module):
    A: Tensor

    def __init__(
        self, layout: str = "ntu", in_channels: int = 3, width: int = 64, feature_dim: int = 256, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.register_buffer("A", adjacency(layout, "agcn"))
        self.data_bn = nn.BatchNorm1d(in_channels * self.A.shape[1])
        widths = [in_channels, *[width] * 4, *[2 * width] * 3, *[4 * width] * 2, feature_dim]
        self.st_gcn_networks = nn.ModuleList(
            Block(widths[i], widths[i + 1], 2 if i in (4, 7) else 1, dropout if i else 0.0, i > 0) for i in range(10)
        )
        self.edge_importance = nn.ParameterList(nn.Parameter(torch.ones_like(self.A)) for _ in range(10))

    def feature_map(self, clips: Tensor) -> Tensor:
        N, C, T, V, M = clips.shape
        x = clips.permute(0, 4, 3, 1, 2).contiguous().view(N * M, V * C, T)
        x = self.data_bn(x).view(N, M, V, C, T).permute(0, 1, 3, 4, 2).contiguous().view(N * M, C, T, V)
        for block, importance in zip(self.st_gcn_networks, self.edge_importance, strict=True):
            x = block(x, self.A * importance)
        return x

    def forward(self, clips: Tensor) -> Tensor:
        return pooled(self.feature_map(clips), clips.shape[4])
