"""What the eager encoders share: clips to maps, maps to features, temporal convolutions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from skelops.graphs import get_layout


def normalized_bodies(clips: Tensor, data_bn: nn.BatchNorm1d) -> Tensor:
    """(N, C, T, V, M) -> (N * M, C, T, V), normalised over the bodies, joints and coordinates of a clip."""
    N, C, T, V, M = clips.shape
    x = clips.permute(0, 4, 3, 1, 2).contiguous().view(N, M * V * C, T)
    x = data_bn(x).view(N, M, V, C, T).permute(0, 1, 3, 4, 2).contiguous()
    return x.view(N * M, C, T, V)


def pooled(x: Tensor, bodies: int) -> Tensor:
    """(N * M, C, T, V) -> (N, C): mean over frames and joints, then over bodies."""
    return x.view(x.shape[0] // bodies, bodies, x.shape[1], -1).mean(3).mean(1)


class UnitTCN(nn.Module):
    """Temporal convolution and BatchNorm."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 9, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 * dilation
        self.conv = nn.Conv2d(inputs, outputs, (kernel_size, 1), (stride, 1), (padding, 0), (dilation, 1))
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class MultiScaleTCN(nn.Module):
    """The multi-scale temporal convolution of MS-G3D and CTR-GCN: dilated branches, a max-pool branch, a 1x1 branch."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        width = channels // 4
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                UnitTCN(width, width, 5, stride, dilation),
            )
            for dilation in (1, 2)
        )
        self.branches.append(
            nn.Sequential(
                nn.Conv2d(channels, width, 1),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d((3, 1), (stride, 1), (1, 0)),
                nn.BatchNorm2d(width),
            )
        )
        self.branches.append(nn.Sequential(nn.Conv2d(channels, width, 1, (stride, 1)), nn.BatchNorm2d(width)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def residual(inputs: int, outputs: int, stride: int) -> nn.Module:
    """What a unit adds to its output: its input, or a strided 1x1 convolution of it where shapes differ."""
    return nn.Identity() if inputs == outputs and stride == 1 else UnitTCN(inputs, outputs, 1, stride)


def ten_blocks(inputs: int, width: int) -> list[tuple[int, int, int]]:
    """(inputs, outputs, stride) of the ten blocks of AGCN and CTR-GCN."""
    outputs = [width] * 4 + [2 * width] * 3 + [4 * width] * 3
    return [(a, b, 2 if i in (4, 7) else 1) for i, (a, b) in enumerate(zip([inputs, *outputs], outputs, strict=False))]


class UnitEncoder(nn.Module):
    """Clips through BatchNorm and units ``l1``, ``l2``, ...; features are the pooled last map."""

    def __init__(self, layout: str, in_channels: int, bodies: int, units: Iterable[nn.Module]) -> None:
        super().__init__()
        self.data_bn = nn.BatchNorm1d(bodies * in_channels * get_layout(layout).num_joints)
        named = {f"l{i}": unit for i, unit in enumerate(units, 1)}
        self.names = list(named)
        for name, unit in named.items():
            self.add_module(name, unit)

    def feature_map(self, clips: Tensor) -> Tensor:
        x = normalized_bodies(clips, self.data_bn)
        for name in self.names:
            x = getattr(self, name)(x)
        return x

    def forward(self, clips: Tensor) -> Tensor:
        return pooled(self.feature_map(clips), clips.shape[4])
