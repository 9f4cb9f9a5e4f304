"""ST-GCN (Yan et al., AAAI 2018) in the form that SkeletonCLR and its descendants use, on `skelops.nn.STGCNBlock`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import skelops
from skelops.graphs import Layout, adjacency, get_layout
from skelops.nn import STGCNBlock


class STGCN(nn.Module):
    """Clips (N, C, T, V, M) float32 to features (N, feature_dim).

    Ten blocks of widths w, w, w, w, 2w, 2w, 2w, 4w, 4w, feature_dim; blocks 5 and 8 halve the frames, so the last map
    has T' = ceil(T / 4). The adjacency of block i is ``A * edge_importance[i]``. Bodies are rows of the batch, absent
    ones (all zeros) included, and features are averaged over them. Names of parameters and buffers are those of
    published checkpoints.

    Args:
        layout: joint layout, fixes V.
        in_channels: C, coordinates per joint.
        width: w; 64 in ST-GCN, 16 in SkeleMixCLR.
        feature_dim: channels of the last block.
        dropout: after the temporal convolution of every block but the first.
        strategy: adjacency strategy of `skelops.graphs.adjacency`; "agcn" in SkeleMixCLR and SkeAttnCLR.

    Raises:
        ValueError: unknown layout or strategy, or clips of another shape.
    """

    #: Frames of the clip per frame of the last map.
    temporal_stride = 4
    A: Tensor

    def __init__(
        self,
        layout: str | Layout = "ntu",
        in_channels: int = 3,
        width: int = 64,
        feature_dim: int = 256,
        dropout: float = 0.5,
        strategy: str = "agcn",
    ) -> None:
        super().__init__()
        self.layout = get_layout(layout)
        self.feature_dim = feature_dim
        #: Builds the same encoder again: ``STGCN(**arguments)``.
        self.arguments: dict[str, Any] = {
            "layout": self.layout.name,
            "in_channels": in_channels,
            "width": width,
            "feature_dim": feature_dim,
            "dropout": dropout,
            "strategy": strategy,
        }
        self.register_buffer("A", adjacency(self.layout, strategy))
        subsets = self.A.shape[0]
        self.data_bn = nn.BatchNorm1d(in_channels * self.layout.num_joints)
        widths = [in_channels, *[width] * 4, *[2 * width] * 3, *[4 * width] * 2, feature_dim]
        self.st_gcn_networks = nn.ModuleList(
            STGCNBlock(
                widths[i],
                widths[i + 1],
                subsets,
                stride=2 if i in (4, 7) else 1,
                dropout=dropout if i else 0.0,
                residual=i > 0,
            )
            for i in range(10)
        )
        self.edge_importance = nn.ParameterList(nn.Parameter(torch.ones_like(self.A)) for _ in range(10))
        #: The projector of a contrastive framework; `forward` applies it, `features` does not.
        self.fc: nn.Module = nn.Identity()

    def feature_map(self, clips: Tensor) -> Tensor:
        """The last map (N * M, feature_dim, ceil(T / 4), V), clip-major."""
        N, C, T, V, M = self._check(clips)
        # Channels of the normalisation run over joints first, then coordinates.
        x = clips.permute(0, 4, 3, 1, 2).reshape(N * M, V * C, T)
        x = self.data_bn(x).view(N * M, V, C, T).permute(0, 2, 3, 1)
        # On the CPU, convolutions of few channels are up to 1.3 times faster in channels_last.
        x = x.contiguous(memory_format=torch.channels_last if x.device.type == "cpu" else torch.contiguous_format)
        for block, importance in zip(self.st_gcn_networks, self.edge_importance, strict=True):
            x = block(x, self.A * importance)
        return x

    def features(self, clips: Tensor) -> Tensor:
        """Pooled features (N, feature_dim): mean over frames and joints, then over bodies."""
        return skelops.squeeze_pool(self.feature_map(clips), bodies=clips.shape[4]).mean

    def masked_features(self, clips: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, feature_dim) inside and outside a mask (ceil(T / 4), V) of the last map.

        The spatio-temporal mask pooling of SkeleMixCLR; each is the mean over its own cells, then over bodies.
        """
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

    def _check(self, clips: Tensor) -> torch.Size:
        channels, joints = self.arguments["in_channels"], self.layout.num_joints
        if clips.dim() != 5 or clips.shape[1] != channels or clips.shape[3] != joints:
            raise ValueError(f"clips: expected shape (N, {channels}, T, {joints}, M), got {tuple(clips.shape)}")
        return clips.shape
