"""HCN (Li et al., IJCAI 2018), as its common re-implementation has it."""

from __future__ import annotations

import torch
from skelops.methods.encoders.encoder import Encoder
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, max_pool2d, relu

import skelops
from skelops.graphs import Layout
from skelops.nn import Linear, TemporalConv
from skelops.ops.squeeze_pool import SqueezePool


class HCN(Encoder):
    """Clips (N, C, T, V, M) to features (N, feature_dim): co-occurrence features, joints becoming channels.

    Two branches, positions and their differences between frames: convolutions 1x1 (to w channels) and 3x1 (to T
    channels) joint by joint; then joints and channels change places, and 3x3 convolutions with max-pooling run over
    (frames, former channels). Both are concatenated, convolved further, maximised over bodies, and go through a linear
    layer. Names are those of HCN-pytorch (``conv1.0`` to ``conv6.0``, with ``m`` for the motion branch, ``fc7.0``; its
    ``fc8`` is the classifier).

    Args:
        layout: joint layout, fixes V.
        in_channels: C, coordinates per joint.
        frames: T, which fixes the size of the linear layer; at least 16.
        width: w, at least 2.
        feature_dim: outputs of the linear layer.
        dropout: of whole channels after convolutions 4 to 6, and of features.

    Raises:
        ValueError: unknown layout, fewer than 16 frames, another size out of range, or clips of another shape.
    """

    temporal_stride = 1
    pools_its_map = False

    def __init__(
        self,
        layout: str | Layout = "ntu",
        in_channels: int = 3,
        frames: int = 64,
        width: int = 64,
        feature_dim: int = 512,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(
            layout, in_channels, feature_dim, frames=frames, width=width, feature_dim=feature_dim, dropout=dropout
        )
        if frames < 16:
            raise ValueError(f"frames: expected at least 16, got {frames}")
        if width < 2:
            raise ValueError(f"width: expected at least 2, got {width}")
        self.frames, joints = frames, self.layout.num_joints
        self.dropout = nn.Dropout2d(dropout)
        self.feature_dropout = nn.Dropout(dropout)

        def layer(module: nn.Module) -> nn.ModuleDict:
            return nn.ModuleDict({"0": module})

        for suffix in ("", "m"):
            self.add_module(f"conv1{suffix}", layer(TemporalConv(in_channels, width)))
            self.add_module(f"conv2{suffix}", TemporalConv(width, frames, 3))
            self.add_module(f"conv3{suffix}", layer(nn.Conv2d(joints, width // 2, 3, padding=1)))
            self.add_module(f"conv4{suffix}", layer(nn.Conv2d(width // 2, width, 3, padding=1)))
        self.conv5 = layer(nn.Conv2d(2 * width, 2 * width, 3, padding=1))
        self.conv6 = layer(nn.Conv2d(2 * width, 4 * width, 3, padding=1))
        self.fc7 = layer(Linear(4 * width * (frames // 16) ** 2, feature_dim))

    def feature_map(self, clips: Tensor) -> Tensor:
        """The position branch before joints become channels, (N * M, frames, T, V), clip-major.

        Pooling over frames and joints does not make the features of this encoder; a head that needs a map takes it.
        """
        self._check(clips)
        return self._per_joint(self._bodies(clips, None), "")

    @property
    def map_channels(self) -> int:
        """The frames, which are channels in the last map."""
        return self.frames

    def features(self, clips: Tensor) -> Tensor:
        """Features (N, feature_dim)."""
        return self._features_and_map(clips)[0]

    def features_and_squeezes(self, clips: Tensor) -> tuple[Tensor, SqueezePool]:
        """Features, and the squeezes of `feature_map`."""
        features, last = self._features_and_map(clips)
        return features, skelops.squeeze_pool(last, bodies=clips.shape[4])

    def _features_and_map(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        N, C, T, V, M = self._check(clips)
        if self.frames != T:
            raise ValueError(f"clips: expected {self.frames} frames, got {T}")
        positions = clips.permute(0, 4, 1, 2, 3).reshape(N * M, C, T, V)
        motion = interpolate(positions[:, :, 1:] - positions[:, :, :-1], size=(T, V), mode="bilinear")
        last = self._per_joint(positions, "")
        y = torch.cat([self._branch(last, ""), self._branch(self._per_joint(motion, "m"), "m")], dim=1)
        for name in ("conv5", "conv6"):
            y = max_pool2d(self.dropout(relu(self._convolve(name, y))), 2)
        bodies = y.mT.unflatten(0, (N, M)).amax(1)
        return self.feature_dropout(relu(self.fc7["0"](bodies.flatten(1)))), last

    def _per_joint(self, x: Tensor, suffix: str) -> Tensor:
        """conv2(relu(conv1(x))), both along frames."""
        first, second = self.get_submodule(f"conv1{suffix}.0"), self.get_submodule(f"conv2{suffix}")
        # A normalisation that changes nothing, for the ReLU that comes with it.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        scale = x.new_ones(first.out_channels, dtype=dtype)
        return second(first(x), scale, torch.zeros_like(scale))

    def _branch(self, x: Tensor, suffix: str) -> Tensor:
        """(N * M, frames, T, V) -> (N * M, w, frames / 4, T / 4)."""
        # Joints become channels, without moving anything: a contiguous map is a channels_last one of (V, frames, T).
        y = max_pool2d(self._convolve(f"conv3{suffix}", x.permute(0, 3, 1, 2)), 2)
        return max_pool2d(self.dropout(self._convolve(f"conv4{suffix}", y)), 2)

    def _convolve(self, name: str, x: Tensor) -> Tensor:
        """3x3 over (former channels, frames). Published are (frames, former channels): the weight changes its axes."""
        conv = self.get_submodule(f"{name}.0")
        return conv2d(x, conv.weight.mT, conv.bias, padding=1)
