"""CTR-GCN (Chen et al., ICCV 2021)."""

from __future__ import annotations

from typing import ClassVar

from skelops.methods.encoders.unit import Unit, UnitEncoder, residual, ten_blocks
from torch import Tensor

from skelops.graphs import Layout, adjacency
from skelops.nn import ChannelGraphConv, MultiScaleTemporalConv


def ctr_unit(inputs: int, outputs: int, graph: Tensor, stride: int = 1, has_residual: bool = True) -> Unit:
    """A unit of CTR-GCN: channel-wise topologies, then temporal branches."""
    return Unit(
        ChannelGraphConv(inputs, outputs, graph),
        MultiScaleTemporalConv(outputs, outputs, stride=stride),
        residual(inputs, outputs, stride) if has_residual else None,
    )


class CTRGCN(UnitEncoder):
    """Clips (N, C, T, V, M) to features (N, 4 width).

    Ten units of widths w, w, w, w, 2w, 2w, 2w, 4w, 4w, 4w: a graph convolution with a topology for every channel, and a
    multi-scale temporal convolution; units 5 and 8 halve the frames, so the last map has ceil(T / 4) frames. Names of
    parameters and buffers are those of the released ``model/ctrgcn.py`` (without ``fc``).

    Args:
        layout: joint layout, fixes V.
        in_channels: C, coordinates per joint.
        bodies: M; joints of every body are normalised apart.
        width: w, a multiple of 4.
        strategy: adjacency strategy of `skelops.graphs.adjacency` from which topologies start.

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
            ctr_unit(inputs, outputs, graph, stride, has_residual=i > 0)
            for i, (inputs, outputs, stride) in enumerate(ten_blocks(in_channels, width))
        )
