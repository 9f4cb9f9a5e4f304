"""Units of 2s-AGCN, CTR-GCN and Hyperformer: a convolution or attention over joints, one over frames, a residual."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from skelops.methods.encoders.encoder import Encoder
from torch import Tensor, nn

from skelops.graphs import Layout
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


class UnitEncoder(Encoder):
    """Clips (N, C, T, V, M), normalised joint by joint and body by body, through the units ``l1``, ``l2``, ...

    Args:
        layout: joint layout, fixes V.
        in_channels: C, coordinates per joint.
        feature_dim: output channels of the last unit.
        bodies: M.
        arguments: further ones of the encoder, see `Encoder`.

    Raises:
        ValueError: as `Encoder`.
    """

    def __init__(
        self, layout: str | Layout, in_channels: int, feature_dim: int, /, bodies: int, **arguments: Any
    ) -> None:
        super().__init__(layout, in_channels, feature_dim, bodies=bodies, **arguments)
        self.data_bn = nn.BatchNorm1d(bodies * in_channels * self.layout.num_joints)
        self.units = 0

    def add_units(self, units: Iterable[Unit]) -> None:
        """Appends units by the released names."""
        for unit in units:
            self.units += 1
            self.add_module(f"l{self.units}", unit)

    def feature_map(self, clips: Tensor) -> Tensor:
        """The last map (N * M, feature_dim, ceil(T / 4), V), clip-major."""
        x = self._bodies(clips, self.data_bn, together=True)
        for i in range(1, self.units + 1):
            x = self._run(self.get_submodule(f"l{i}"), x)
        return x
