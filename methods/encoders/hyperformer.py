"""Hyperformer (Zhou et al., 2022)."""

from __future__ import annotations

from dataclasses import replace

import torch
from skelops.methods.encoders.unit import Unit, UnitEncoder, residual
from torch import Tensor

from skelops.graphs import LAYOUTS, Layout, get_layout, hops, part_of_joint
from skelops.nn import HopAttention, MultiScaleTemporalConv

#: Parents of the tips of the hands in the released ``graph/ntu_rgb_d.py``: the hands, where our layout has the thumbs.
NTU_TIPS = {21: 7, 23: 11}
#: ``joint_label`` of the released ``config/*/*.yaml``; of NW-UCLA that of the joint and motion streams.
GROUPS = {
    "ntu": (0, 4, 2, 2, 2, 2, 1, 1, 2, 2, 1, 1, 2, 3, 3, 3, 2, 3, 3, 3, 1, 0, 1, 0, 1),
    "nw_ucla": (0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2),
}


def hypergraph(layout: str | Layout) -> tuple[Tensor, Tensor]:
    """Edges between every two joints, (V, V) int64, and the group (hyperedge) of every joint, (V,) int64.

    As released for "ntu" and "nw_ucla"; along the tree and by the body parts of any other layout.

    Raises:
        ValueError: unknown layout.
    """
    layout = get_layout(layout)
    if layout.name not in GROUPS or layout != LAYOUTS[layout.name]:  # an altered one may keep the name
        return hops(layout), part_of_joint(layout)
    groups = torch.tensor(GROUPS[layout.name])
    if layout.name == "ntu":
        layout = replace(layout, edges=tuple((dict(layout.edges) | NTU_TIPS).items()))
    return hops(layout), groups


class Hyperformer(UnitEncoder):
    """Clips (N, C, T, V, M) to features (N, heads * head_dim).

    Ten units of one width: self-attention over the joints of every frame, which knows distances along the skeleton and
    groups of joints, and a multi-scale temporal convolution; units 5 and 8 halve the frames, so the last map has
    ceil(T / 4) frames. Names of parameters and buffers are those of the released ``model/Hyperformer.py`` (without
    ``fc``).

    Args:
        layout: joint layout, fixes V and, see `hypergraph`, distances and groups; for other groups a `Layout` of one's
            own with these as its ``parts`` (the released bone streams of NW-UCLA group joints another way).
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
        distances, groups = hypergraph(self.layout)
        for i in range(10):
            inputs, stride = channels if i else in_channels, 2 if i in (4, 7) else 1
            unit = Unit(
                HopAttention(inputs, channels, heads, distances, groups),
                MultiScaleTemporalConv(channels, channels, stride=stride),
                residual(inputs, channels, stride),
                name="vit1",
            )
            self.add_units([unit])
