"""Maps that carry their normalisation with them, so that whoever reads a map next applies it while loading.

A convolution hands the sums of its channels on (`MapStats`), a BatchNorm makes a scale and a shift of them
(`ScaledMap`), and the next convolution, or the `join` at the end of a block, applies both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skelops._stats import MapStats
from skelops.nn.batch_norm import Norm, alike, scale_shift, side_by_side, uses_batch_statistics
from skelops.nn.recomputing import recomputed
from skelops.nn.temporal_conv import TemporalConv
from skelops.ops.norm_act import norm_act
from skelops.ops.temporal_conv import temporal_conv

#: Channels that a `pointwise` convolution makes of one, from which it is computed again: it then reads little.
WIDER = 8
#: Channels that an embedding reads, up to which computing it again takes less of the time than it takes memory.
NARROW = 64


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

    def halves(self) -> tuple[ScaledMap, ScaledMap]:
        """The first and the second half of the channels."""
        maps, scales, shifts = self.map.chunk(2, dim=1), self.scale.chunk(2), self.shift.chunk(2)
        return ScaledMap(maps[0], scales[0], shifts[0]), ScaledMap(maps[1], scales[1], shifts[1])


def normalised(y: Tensor | MapStats, *norms: Norm) -> ScaledMap:
    """``BN(y)``, still to be applied; of several BatchNorms each has its share of the channels, one after the other."""
    output = y if isinstance(y, Tensor) else y.output
    if alike(norms):
        return ScaledMap(output, *scale_shift(y, *norms))
    channels = [norm.num_features for norm in norms]
    parts: Iterable[Any] = output.split(channels, dim=1)
    if isinstance(y, MapStats):
        parts = map(MapStats, parts, y.sum.split(channels), y.square_sum.split(channels))
    scales, shifts = zip(*map(scale_shift, parts, norms), strict=True)
    return ScaledMap(output, torch.cat(scales), torch.cat(shifts))


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


class ConvNorm(nn.Module):
    """``BN(conv(x))`` with a convolution along frames; of a normalised map ``BN(conv(relu(x)))``.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation: of `TemporalConv`.
        names: of the convolution and the BatchNorm in the state_dict.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        dilation: int = 1,
        names: tuple[str, str] = ("0", "1"),
    ) -> None:
        super().__init__()
        self.names = names
        self.add_module(names[0], TemporalConv(in_channels, out_channels, kernel_size, stride, dilation))
        self.add_module(names[1], nn.BatchNorm2d(out_channels))

    @property
    def convolution(self) -> Any:
        """The convolution."""
        return self._modules[self.names[0]]

    @property
    def norm(self) -> Any:
        """The BatchNorm."""
        return self._modules[self.names[1]]

    def forward(self, x: Tensor | ScaledMap) -> ScaledMap:
        """(B, C, T, V) -> (B, O, ceil(T / stride), V)."""
        inputs = x if isinstance(x, ScaledMap) else (x, None, None)
        return normalised(self.convolution(*inputs, stats=uses_batch_statistics(self.norm)), self.norm)


def shortcut(in_channels: int, out_channels: int, stride: int = 1, names: tuple[str, str] = ("0", "1")) -> nn.Module:
    """What a block adds to its output: its input, or ``BN(conv1x1(input))`` where shapes differ."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return ConvNorm(in_channels, out_channels, stride=stride, names=names)


def stacked(convs: Iterable[Any]) -> tuple[Tensor, Tensor | None]:
    """Weights (O, C / groups, 1) and biases (O,) of 1x1 convolutions, one after the other."""
    convs = list(convs)
    bias = None if convs[0].bias is None else side_by_side(conv.bias for conv in convs)
    return side_by_side(conv.weight for conv in convs).squeeze(3), bias


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
    """A 1x1 convolution."""
    y = temporal_conv(x, weight, bias, groups=groups)
    assert isinstance(y, Tensor)
    return y


def pointwise(x: Tensor, convs: Iterable[nn.Module], groups: int = 1, embeds: bool = False) -> Tensor:
    """The 1x1 convolutions of one map as one, their channels one after the other.

    Within `recompute` they are not kept but computed again where there are `WIDER` times the channels of ``x``, or
    where they embed (``embeds``) up to `NARROW` channels.
    """
    weight, bias = stacked(convs)
    again = len(weight) >= WIDER * x.shape[1] or (embeds and x.shape[1] <= NARROW)
    return (partial(recomputed, project) if again else project)(x, weight, bias, groups)


def pointwise_normalised(x: Tensor, parts: Sequence[ConvNorm]) -> ScaledMap:
    """1x1 convolutions of one map as one, each with its own normalisation, their channels one after the other."""
    y = temporal_conv(x, *stacked(part.convolution for part in parts), stats=uses_batch_statistics(parts[0].norm))
    return normalised(y, *(part.norm for part in parts))


def initialise(module: nn.Module) -> None:
    """Kaiming weights over the outputs and zero biases for every convolution, as released encoders begin."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
