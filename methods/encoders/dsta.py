"""DSTA-Net as SDS-CL uses it (Shi et al., ACCV 2020; Xu et al., 2023)."""

from __future__ import annotations

import itertools
from typing import ClassVar

from skelops.methods.encoders.encoder import Encoder
from torch import Tensor, nn

from skelops.graphs import Layout
from skelops.nn import JointAttentionBlock
from skelops.nn.joint_attention import SLOPE
from skelops.nn.scaled import ConvNorm, join


class DSTA(Encoder):
    """Clips (N, C, T, V, M) to features (N, 4 width).

    A 1x1 convolution, then eight blocks of widths w, w, 2w, 2w, 4w, 4w, 4w, 4w: spatial attention with tanh, a
    feed-forward layer, a 7x1 convolution; blocks 3 and 5 halve the frames, so the last map has ceil(T / 4) frames.
    Names of parameters and buffers are those of the released ``model/dstanet.py`` (without ``fc``); the encoding
    ``pes.pe`` is kept for one frame, and one of a checkpoint for many loads.

    Args:
        layout: joint layout, fixes V.
        in_channels: C, coordinates per joint.
        width: w, even and at least 4.
        heads: S, subsets of the attention.

    Raises:
        ValueError: unknown layout, a size is out of range, or clips of another shape.
    """

    multiples: ClassVar = {"width": 2}

    def __init__(self, layout: str | Layout = "ntu", in_channels: int = 3, width: int = 64, heads: int = 4) -> None:
        super().__init__(layout, in_channels, 4 * width, width=width, heads=heads)
        if width < 4:
            raise ValueError(f"width: expected at least 4, got {width}")
        joints = self.layout.num_joints
        self.input_map = ConvNorm(in_channels, width)
        widths = [width, width, width, 2 * width, 2 * width, *[4 * width] * 4]
        self.graph_layers = nn.ModuleList(
            JointAttentionBlock(inputs, outputs, outputs // 4, joints, heads, stride=1 if inputs == outputs else 2)
            for inputs, outputs in itertools.pairwise(widths)
        )

    def feature_map(self, clips: Tensor) -> Tensor:
        """The last map (N * M, 4 width, ceil(T / 4), V), clip-major."""
        x = join(self.input_map(self._bodies(clips, None)), negative_slope=SLOPE)
        for block in self.graph_layers:
            x = self._run(block, x)
        return x
