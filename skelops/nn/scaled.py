"""Maps that carry their normalisation with them, so that whoever reads a map next applies it while loading.

A convolution hands the sums of its channels on (`MapStats`), a BatchNorm makes a scale and a shift of them
(`ScaledMap`), and the next convolution, or the `join` at the end of a block, applies both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from skelops._stats import MapStats
from skelops.nn.batch_norm import BatchNormAct2d
from skelops.ops.norm_act import norm_act
from skelops.ops.temporal_conv import temporal_conv


class ScaledMap(NamedTuple):
    """A normalised map: ``scale[c] * map[b,c,t,v] + shift[c]``, still to be applied.

    Attributes:
        map: (B, C, T, V).
        scale: (C,) float32.
        shift: (C,) float32.
    """

    map: Tensor
    scale: Tensor
    shift: Tensor


def channels(y: Tensor | MapStats, start: int, stop: int) -> Tensor | MapStats:
    """The channels start to stop of a map, with their sums."""
    if isinstance(y, Tensor):
        return y[:, start:stop]
    return MapStats(y.output[:, start:stop], y.sum[start:stop], y.square_sum[start:stop])


def normalised(y: Tensor | MapStats, bn: BatchNormAct2d) -> ScaledMap:
    """``bn(y)``, still to be applied."""
    return ScaledMap(y if isinstance(y, Tensor) else y.output, *bn.scale_shift(y))


def convolve(x: Tensor | ScaledMap, conv: nn.Conv2d, bn: BatchNormAct2d) -> ScaledMap:
    """``bn(conv(x))``, or ``bn(conv(relu(x)))`` of a normalised map; the convolution runs along frames."""
    x, scale, shift = x if isinstance(x, ScaledMap) else (x, None, None)
    y = temporal_conv(
        x,
        conv.weight.squeeze(3),
        conv.bias,
        scale,
        shift,
        stride=conv.stride[0],
        dilation=conv.dilation[0],
        groups=conv.groups,
        stats=bn.uses_batch_statistics,
    )
    return normalised(y, bn)


def pointwise(x: Tensor, convs: Sequence[nn.Conv2d], *, stats: bool = False) -> Tensor | MapStats:
    """The 1x1 convolutions of one map as one, their channels one after the other."""
    if len(convs) == 1:
        weight, bias = convs[0].weight, convs[0].bias
    else:
        weight = torch.cat([conv.weight for conv in convs])
        bias = None if convs[0].bias is None else torch.cat([conv.bias for conv in convs if conv.bias is not None])
    return temporal_conv(x, weight.squeeze(3), bias, stride=convs[0].stride[0], groups=convs[0].groups, stats=stats)


def join(
    x: ScaledMap, residual: Tensor | ScaledMap | None = None, negative_slope: float = 0.0, dropout: float = 0.0
) -> Tensor:
    """``act(dropout(x) + residual)``: the end of a block, in one pass.

    Args:
        x: the normalised map.
        residual: a map, a normalised map, or None.
        negative_slope: 0 for ReLU, 1 for no activation.
        dropout: probability of zeroing an element; the seed is drawn from torch's generator.
    """
    seed = torch.randint(2**63 - 1, (1,), device=x.map.device) if dropout else None
    others = residual if isinstance(residual, ScaledMap) else (residual, None, None)
    return norm_act(*x, *others, negative_slope=negative_slope, dropout=dropout, seed=seed)


class Shortcut(nn.Module):
    """What a block adds to its output: its input, or ``BN(conv1x1(input))`` where shapes differ.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: temporal stride of the block.
        names: of the convolution and the BatchNorm in the state_dict.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, names: tuple[str, str] = ("0", "1")
    ) -> None:
        super().__init__()
        self.names = None if in_channels == out_channels and stride == 1 else names
        if self.names:
            self.add_module(names[0], nn.Conv2d(in_channels, out_channels, 1, (stride, 1)))
            self.add_module(names[1], BatchNormAct2d(out_channels))

    def forward(self, x: Tensor) -> Tensor | ScaledMap:
        if self.names is None:
            return x
        conv, bn = (self.get_submodule(name) for name in self.names)
        assert isinstance(conv, nn.Conv2d) and isinstance(bn, BatchNormAct2d)
        return convolve(x, conv, bn)
