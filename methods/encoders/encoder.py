"""What every encoder has in common: clips in, pooled features or the last map out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import skelops
from skelops._checks import positive_integer
from skelops.graphs import Layout, get_layout
from skelops.nn.recomputing import recompute
from skelops.ops.squeeze_pool import SqueezePool


@contextmanager
def _running_statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch statistics as in training, but running statistics stay: a batch that is seen again counts once."""
    kinds = nn.BatchNorm2d | nn.SyncBatchNorm
    norms = [m for m in block.modules() if isinstance(m, kinds) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class Encoder(nn.Module, ABC):
    """Clips (N, C, T, V, M) to features (N, feature_dim).

    Bodies are rows of the batch, absent ones (all zeros) included. Maps are channels_last throughout.

    Args:
        layout: joint layout, fixes V.
        in_channels: C, coordinates per joint.
        feature_dim: channels of the pooled feature.
        arguments: what builds the same encoder again, beside the layout and the coordinates; all but ``strategy`` and
            ``dropout`` are sizes.

    Raises:
        ValueError: a size is no positive integer or no multiple of what `multiples` says, ``dropout`` no probability.

    Attributes:
        arguments: all of it, in plain types: ``type(encoder)(**encoder.arguments)`` is a twin without the weights.
        fc: the projector or classifier of a framework; `forward` applies it, `features` does not.
        recomputing: whether blocks compute some maps again in the backward pass (`skelops.nn.recompute`); on at first.
        checkpointing: whether blocks keep their inputs alone and run their forward pass again in the backward pass.
    """

    #: Frames of the clip per frame of the last map.
    temporal_stride = 4
    #: Whether the features are the pooled last map.
    pools_its_map = True
    #: Numbers that arguments have to be multiples of.
    multiples: ClassVar[dict[str, int]] = {}

    def __init__(self, layout: str | Layout, in_channels: int, feature_dim: int, /, **arguments: Any) -> None:
        super().__init__()
        for name, value in {"in_channels": in_channels, **arguments}.items():
            if name == "dropout":
                if not 0 <= value <= 1:
                    raise ValueError(f"dropout: expected 0 to 1, got {value}")
            elif name != "strategy":
                positive_integer(name, value)
                if value % self.multiples.get(name, 1):
                    raise ValueError(f"{name}: expected a multiple of {self.multiples[name]}, got {value}")
        self.layout = get_layout(layout)
        self.in_channels, self.feature_dim = in_channels, feature_dim
        self.arguments = {"layout": self.layout.stored(), "in_channels": in_channels, **arguments}
        self.recomputing, self.checkpointing = True, False
        self.fc: nn.Module = nn.Identity()

    @abstractmethod
    def feature_map(self, clips: Tensor) -> Tensor:
        """The last map before pooling, (N * M, channels, frames, V), clip-major."""

    def features(self, clips: Tensor) -> Tensor:
        """Pooled features (N, feature_dim): mean over frames and joints, then over bodies."""
        return skelops.squeeze_pool(self.feature_map(clips), bodies=clips.shape[4]).mean

    @property
    def map_channels(self) -> int:
        """Channels of the last map."""
        return self.feature_dim

    def check_pools_its_map(self, method: str) -> None:
        """Refuses an encoder for a method that trains the last map, as that would train a part of the features alone.

        Raises:
            ValueError: the features of this encoder are not its pooled last map.
        """
        if not self.pools_its_map:
            raise ValueError(
                f"encoder: {method} trains the last map, so it needs an encoder whose features are its pooled last"
                f" map; those of {type(self).__name__} are not"
            )

    def features_and_squeezes(self, clips: Tensor) -> tuple[Tensor, SqueezePool]:
        """Features (N, feature_dim), and the last map squeezed over joints, over frames and over both, averaged over
        bodies: frames (N, map_channels, T'), joints (N, map_channels, V), mean (N, map_channels)."""
        pooled = skelops.squeeze_pool(self.feature_map(clips), bodies=clips.shape[4])
        return pooled.mean, pooled

    def masked_features(self, clips: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, feature_dim) inside and outside a mask (frames, V) of the last map.

        The spatio-temporal mask pooling of SkeleMixCLR; each is the mean over its own cells, then over bodies.

        Raises:
            ValueError: the features of this encoder are not its pooled last map.
        """
        self.check_pools_its_map("mask pooling")
        bodies = clips.shape[4]
        inside, outside = skelops.mask_pool(self.feature_map(clips), mask)
        return inside.unflatten(0, (-1, bodies)).mean(1), outside.unflatten(0, (-1, bodies)).mean(1)

    def forward(self, clips: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """`fc` on `features`, or on both `masked_features`, one after the other as released: a batch normalisation in
        `fc` sees each by itself."""
        if mask is None:
            return self.fc(self.features(clips))
        inside, outside = self.masked_features(clips, mask)
        return self.fc(inside), self.fc(outside)

    def load_published(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads the weights of this encoder from a checkpoint of its released code.

        Names are the released ones; what differs is taken care of: a prefix (``module.`` of DataParallel,
        ``encoder_q.`` and the like of contrastive frameworks, of which the first is taken), the classifier and whatever
        else a checkpoint holds beside the encoder, and batch counters, which old ones lack.

        Raises:
            ValueError: an entry of the encoder is missing or of another shape; names the first.
        """
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("fc.")}
        anchor = next(iter(own))
        prefixes = [name.removesuffix(anchor) for name in state_dict if f".{name}".endswith(f".{anchor}")]
        if not prefixes:
            raise ValueError(f"state_dict: expected an entry {anchor}, with or without a prefix; found none")
        found = {name: state_dict.get(prefixes[0] + name) for name in own}
        for name, value in found.items():
            if value is None and not name.endswith("num_batches_tracked"):
                raise ValueError(f"state_dict: expected {prefixes[0]}{name} {tuple(own[name].shape)}, which is missing")
        try:
            self.load_state_dict({name: value for name, value in found.items() if value is not None}, strict=False)
        except RuntimeError as error:  # torch lists the shapes that differ
            raise ValueError(f"state_dict: {str(error).splitlines()[1].strip()}") from error

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """A block, which keeps as much as was asked for; a pass that runs again leaves the running statistics alone."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return recompute(block, *inputs) if self.recomputing else block(*inputs)
        return checkpoint(
            block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _running_statistics_kept(block))
        )

    def _bodies(self, clips: Tensor, data_bn: nn.BatchNorm1d | None, together: bool = False) -> Tensor:
        """Clips as a channels_last map (N * M, C, T, V), its coordinates normalised joint by joint.

        Args:
            clips: (N, C, T, V, M).
            data_bn: over V * C features, joints first, or M * V * C with ``together``; None: as they come.
            together: whether the bodies of a clip are normalised apart, each its own features.

        Raises:
            ValueError: clips of another shape.
        """
        N, C, T, V, M = self._check(clips)
        if data_bn is not None and together:
            rows = clips.permute(0, 2, 4, 3, 1).reshape(N * T, M * V * C)
            if rows.shape[1] != data_bn.num_features:
                bodies = data_bn.num_features // (V * C)
                raise ValueError(f"clips: expected {bodies} bodies, got shape {tuple(clips.shape)}")
            rows = data_bn(rows).view(N, T, M, V, C).transpose(1, 2).reshape(N * M, T, V, C)
        else:
            rows = clips.permute(0, 4, 2, 3, 1).reshape(N * M * T, V * C)
            rows = (rows if data_bn is None else data_bn(rows)).view(N * M, T, V, C)
        return rows.permute(0, 3, 1, 2)

    def _check(self, clips: Tensor) -> torch.Size:
        channels, joints = self.in_channels, self.layout.num_joints
        if clips.dim() != 5 or clips.shape[1] != channels or clips.shape[3] != joints:
            raise ValueError(f"clips: expected shape (N, {channels}, T, {joints}, M), got {tuple(clips.shape)}")
        return clips.shape
