"""The multi-scale temporal convolution of MS-G3D and CTR-GCN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from skelops.nn.batch_norm import BatchNormAct2d
from skelops.nn.scaled import ScaledMap, channels, convolve, join, normalised, pointwise
from skelops.nn.temporal_conv import TemporalConv


class MultiScaleTemporalConv(nn.Module):
    """Branches side by side, each on its share of the output channels::

        dilated:  BN(conv_kx1(relu(BN(conv1x1(x)))))      one for each dilation
        pooled:   BN(max_pool_3x1(relu(BN(conv1x1(x)))))
        plain:    BN(conv1x1(x))

    The 1x1 convolutions of all but the plain branch are one, whose normalisation and ReLU the next convolution applies
    while loading. Parameter names follow CTR-GCN's released ``MultiScale_TemporalConv`` (``branches.{i}.0``, ``.1``,
    ``.3.conv``, ``.3.bn``, ``.4``).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, a multiple of the number of branches.
        kernel_size: frames that a dilated convolution spans, before dilation.
        stride: temporal stride; T frames become ceil(T / stride).
        dilations: of the dilated branches.

    Raises:
        ValueError: the output channels do not divide among the branches.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 5,
        stride: int = 1,
        dilations: Sequence[int] = (1, 2),
    ) -> None:
        super().__init__()
        count = len(dilations) + 2
        if out_channels % count:
            raise ValueError(f"out_channels: expected a multiple of the {count} branches, got {out_channels}")
        self.width, self.stride = out_channels // count, stride
        width = self.width

        def branch(last: dict[str, nn.Module], stride: int = 1) -> nn.ModuleDict:
            first: dict[str, nn.Module] = {
                "0": nn.Conv2d(in_channels, width, 1, (stride, 1)),
                "1": BatchNormAct2d(width),
            }
            return nn.ModuleDict(first | last)

        self.branches = nn.ModuleList(
            branch(
                {
                    "3": nn.ModuleDict(
                        {
                            "conv": TemporalConv(width, width, kernel_size, stride, dilation),
                            "bn": BatchNormAct2d(width),
                        }
                    )
                }
            )
            for dilation in dilations
        )
        self.branches.append(branch({"4": BatchNormAct2d(width)}))
        self.branches.append(branch({}, stride))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> ScaledMap:
        """(B, C, T, V) -> normalised (B, out_channels, ceil(T / stride), V), without the final activation."""
        *narrowed, plain = self.branches
        uses_batch = narrowed[0]["1"].uses_batch_statistics
        narrow = pointwise(x, [branch["0"] for branch in narrowed], stats=uses_batch)
        parts = []
        for i, branch in enumerate(narrowed):
            part = normalised(channels(narrow, i * self.width, (i + 1) * self.width), branch["1"])
            if "3" in branch:
                parts.append(convolve(part, branch["3"]["conv"], branch["3"]["bn"]))
            else:
                pooled = max_pool2d(join(part), (3, 1), (self.stride, 1), (1, 0))
                parts.append(normalised(pooled, branch["4"]))
        parts.append(convolve(x, plain["0"], plain["1"]))
        maps, scales, shifts = zip(*parts, strict=True)
        return ScaledMap(torch.cat(maps, dim=1), torch.cat(scales), torch.cat(shifts))
