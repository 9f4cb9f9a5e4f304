"""HCN in the style of its common re-implementation: a loop over bodies, positions and motion side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from skelops.graphs import get_layout


def level(inputs: int, outputs: int, relu: bool, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1)]
    layers += [nn.ReLU()] if relu else []
    layers += [nn.Dropout2d(dropout)] if dropout >= 0 else []
    return nn.Sequential(*layers, nn.MaxPool2d(2))


class HCN(nn.Module):
    def __init__(
        self,
        layout: str = "ntu",
        in_channels: int = 3,
        frames: int = 64,
        width: int = 64,
        feature_dim: int = 512,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        joints = get_layout(layout).num_joints
        for suffix in ("", "m"):
            self.add_module(f"conv1{suffix}", nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.ReLU()))
            self.add_module(f"conv2{suffix}", nn.Conv2d(width, frames, (3, 1), padding=(1, 0)))
            self.add_module(f"conv3{suffix}", level(joints, width // 2, relu=False, dropout=-1))
            self.add_module(f"conv4{suffix}", level(width // 2, width, relu=False, dropout=dropout))
        self.conv5 = level(2 * width, 2 * width, relu=True, dropout=dropout)
        self.conv6 = level(2 * width, 4 * width, relu=True, dropout=dropout)
        flat = 4 * width * (frames // 16) * (frames // 16)
        self.fc7 = nn.Sequential(nn.Linear(flat, feature_dim), nn.ReLU(), nn.Dropout(dropout))

    def branch(self, x: Tensor, suffix: str) -> Tensor:
        x = getattr(self, f"conv2{suffix}")(getattr(self, f"conv1{suffix}")(x))
        x = x.permute(0, 3, 2, 1).contiguous()
        return getattr(self, f"conv4{suffix}")(getattr(self, f"conv3{suffix}")(x))

    def forward(self, clips: Tensor) -> Tensor:
        N, C, T, V, M = clips.shape
        motion = clips[:, :, 1:] - clips[:, :, :-1]
        motion = motion.permute(0, 1, 4, 2, 3).contiguous().view(N, C * M, T - 1, V)
        motion = interpolate(motion, size=(T, V), mode="bilinear", align_corners=False)
        motion = motion.contiguous().view(N, C, M, T, V).permute(0, 1, 3, 4, 2)
        bodies = []
        for i in range(M):
            out = torch.cat([self.branch(clips[..., i], ""), self.branch(motion[..., i], "m")], dim=1)
            bodies.append(self.conv6(self.conv5(out)))
        return self.fc7(torch.stack(bodies).amax(0).flatten(1))
