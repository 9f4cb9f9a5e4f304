"""The multi-scale temporal convolution of MS-G3D and CTR-GCN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from skelops.nn.batch_norm import BatchNormAct2d
from skelops.nn.scaled import ConvNorm, ScaledMap, initialise, join, normalised, pointwise_normalised


class Branch(ConvNorm):
    """``BN(conv1x1(x))`` and the module that comes after it, under the name that it has in the state_dict."""

    def __init__(self, in_channels: int, width: int, name: str, after: nn.Module) -> None:
        super().__init__(in_channels, width)
        self.after_name = name
        self.add_module(name, after)

    def after(self, x: ScaledMap, stride: int) -> ScaledMap:
        """A convolution applies normalisation and ReLU itself; before a BatchNorm lies a max-pool of three frames."""
        module = self.get_submodule(self.after_name)
        if isinstance(module, BatchNormAct2d):
            return normalised(max_pool2d(join(x), (3, 1), (stride, 1), (1, 0)), module)
        return module(x)


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
        self.stride, width = stride, out_channels // count
        dilated = (ConvNorm(width, width, kernel_size, stride, d, names=("conv", "bn")) for d in dilations)
        self.branches = nn.ModuleList(Branch(in_channels, width, "3", module) for module in dilated)
        self.branches.append(Branch(in_channels, width, "4", BatchNormAct2d(width)))
        self.branches.append(ConvNorm(in_channels, width, stride=stride))
        initialise(self)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> ScaledMap:
        """(B, C, T, V) -> normalised (B, out_channels, ceil(T / stride), V), without the final activation."""
        narrowed = [branch for branch in self.branches if isinstance(branch, Branch)]
        parts = [
            branch.after(part, self.stride)
            for branch, part in zip(narrowed, pointwise_normalised(x, narrowed), strict=True)
        ]
        maps, scales, shifts = zip(*parts, self.branches[-1](x), strict=True)
        return ScaledMap(torch.cat(maps, dim=1), torch.cat(scales), torch.cat(shifts))
