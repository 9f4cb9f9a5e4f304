"""Hyperformer (Zhou et al., 2022)."""

from __future__ import annotations

from skelops.methods.encoders.unit import Unit, UnitEncoder, residual

from skelops.graphs import Layout, hops, part_of_joint
from skelops.nn import HopAttention, MultiScaleTemporalConv


class Hyperformer(UnitEncoder):
    """Clips (N, C, T, V, M) to features (N, heads * head_dim).

    Ten units of one width: self-attention over the joints of every frame, which knows distances along the skeleton and
    body parts, and a multi-scale temporal convolution; units 5 and 8 halve the frames, so the last map has ceil(T / 4)
    frames. Names of parameters and buffers are those of the released ``model/Hyperformer.py`` (without ``fc``).

    Args:
        layout: joint layout, fixes V, distances and body parts.
        in_channels: C, coordinates per joint.
        bodies: M; joints of every body are normalised apart.
        heads: attention heads.
        head_dim: channels of a head; heads * head_dim is a multiple of 12.

    Raises:
        ValueError: unknown layout, a size is out of range, or clips of another shape.
    """

    def __init__(
        self,
        layout: str | Layout = "ntu",
        in_channels: int = 3,
        bodies: int = 2,
        heads: int = 9,
        head_dim: int = 24,
    ) -> None:
        channels = heads * head_dim
        super().__init__(layout, in_channels, channels, bodies=bodies, heads=heads, head_dim=head_dim)
        if channels % 12:
            raise ValueError(f"heads * head_dim: expected a multiple of 12, got {channels}")
        distances, parts = hops(self.layout), part_of_joint(self.layout)
        for i in range(10):
            inputs, stride = channels if i else in_channels, 2 if i in (4, 7) else 1
            unit = Unit(
                HopAttention(inputs, channels, heads, distances, parts),
                MultiScaleTemporalConv(channels, channels, stride=stride),
                residual(inputs, channels, stride),
                name="vit1",
            )
            self.add_units([unit])
