"""The unit of 2s-AGCN, CTR-GCN and Hyperformer: a convolution or attention over joints, one over frames, a residual."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from skelops.nn.scaled import ConvNorm, initialise, join, shortcut

#: Of the convolution and the BatchNorm in released units.
NAMES = ("conv", "bn")


class Unit(nn.Module):
    """``relu(tcn1(spatial(x)) + residual(x))``.

    Args:
        spatial: over joints, a map to a map.
        temporal: over frames, a map to a normalised map.
        residual: None where the block has none.
        name: of ``spatial`` in the state_dict.
    """

    def __init__(self, spatial: nn.Module, temporal: nn.Module, residual: nn.Module | None, name: str = "gcn1") -> None:
        super().__init__()
        self.name = name
        self.add_module(name, spatial)
        self.tcn1 = temporal
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, O, ceil(T / stride), V)."""
        y = self.tcn1(getattr(self, self.name)(x))
        return join(y, None if self.residual is None else self.residual(x))


def unit_tcn(in_channels: int, out_channels: int, stride: int = 1) -> ConvNorm:
    """``BN(conv_9x1(x))``, by the names of the released ``unit_tcn``."""
    unit = ConvNorm(in_channels, out_channels, 9, stride, names=NAMES)
    initialise(unit)
    return unit


def residual(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A unit's residual, by the released names."""
    unit = shortcut(in_channels, out_channels, stride, names=NAMES)
    initialise(unit)
    return unit


def ten_blocks(in_channels: int, width: int) -> Iterator[tuple[int, int, int]]:
    """(input channels, output channels, stride) of ten blocks: width, doubled where blocks 5 and 8 halve the frames."""
    for i in range(10):
        out_channels = width * (1 if i < 4 else 2 if i < 7 else 4)
        yield in_channels, out_channels, 2 if i in (4, 7) else 1
        in_channels = out_channels
