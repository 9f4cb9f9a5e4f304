"""2s-AGCN's stream (Shi et al., CVPR 2019)."""

from __future__ import annotations

from typing import ClassVar

from skelops.methods.encoders.unit import Unit, UnitEncoder, residual, ten_blocks, unit_tcn

from skelops.graphs import Layout, adjacency
from skelops.nn import AdaptiveGraphConv


class AGCN(UnitEncoder):
    """Clips (N, C, T, V, M) to features (N, 4 width).

    Ten units of widths w, w, w, w, 2w, 2w, 2w, 4w, 4w, 4w: an adaptive graph convolution, whose topology is the graph,
    a learned part and the samples' own, and a 9x1 convolution; units 5 and 8 halve the frames, so the last map has
    ceil(T / 4) frames. Names of parameters and buffers are those of the released ``model/agcn.py`` (without ``fc``).

    Args:
        layout: joint layout, fixes V.
        in_channels: C, coordinates per joint.
        bodies: M; joints of every body are normalised apart.
        width: w, a multiple of 4.
        strategy: adjacency strategy of `skelops.graphs.adjacency`.

    Raises:
        ValueError: unknown layout or strategy, a size is out of range, or clips of another shape.
    """

    multiples: ClassVar = {"width": 4}

    def __init__(
        self,
        layout: str | Layout = "ntu",
        in_channels: int = 3,
        bodies: int = 2,
        width: int = 64,
        strategy: str = "agcn",
    ) -> None:
        super().__init__(layout, in_channels, 4 * width, bodies=bodies, width=width, strategy=strategy)
        graph = adjacency(self.layout, strategy)
        self.add_units(
            Unit(
                AdaptiveGraphConv(inputs, outputs, graph),
                unit_tcn(outputs, outputs, stride),
                residual(inputs, outputs, stride) if i else None,
            )
            for i, (inputs, outputs, stride) in enumerate(ten_blocks(in_channels, width))
        )
