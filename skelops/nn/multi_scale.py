"""The multi-scale temporal convolution of MS-G3D and CTR-GCN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from skelops.nn.batch_norm import uses_batch_statistics
from skelops.nn.scaled import ConvNorm, ScaledMap, initialise, normalised, pointwise_normalised, stacked
from skelops.ops.multi_scale_conv import multi_scale_conv


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
        self.stride, self.dilations, width = stride, tuple(dilations), out_channels // count
        self.branches = nn.ModuleList(ConvNorm(in_channels, width) for _ in range(count - 1))
        for branch, dilation in zip(self.branches, dilations, strict=False):
            branch.add_module("3", ConvNorm(width, width, kernel_size, stride, dilation, names=("conv", "bn")))
        self.branches[-1].add_module("4", nn.BatchNorm2d(width))
        self.branches.append(ConvNorm(in_channels, width, stride=stride))
        initialise(self)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> ScaledMap:
        """(B, C, T, V) -> normalised (B, out_channels, ceil(T / stride), V), without the final activation."""
        branches: list[Any] = list(self.branches)
        *narrowed, plain = branches
        dilated: list[Any] = [branch.get_submodule("3") for branch in narrowed[:-1]]
        narrow = pointwise_normalised(x, narrowed)
        weight, bias = stacked(conv.convolution for conv in dilated)
        plain_weight, plain_bias = stacked([plain.convolution])
        assert bias is not None and plain_bias is not None
        groups = len(dilated)
        y = multi_scale_conv(
            narrow.map,
            x,
            weight.unflatten(0, (groups, -1)),
            bias.unflatten(0, (groups, -1)),
            plain_weight.squeeze(2),
            plain_bias,
            narrow.scale,
            narrow.shift,
            dilations=self.dilations,
            stride=self.stride,
            stats=uses_batch_statistics(plain.norm),
        )
        return normalised(y, *(conv.norm for conv in dilated), narrowed[-1].get_submodule("4"), plain.norm)
