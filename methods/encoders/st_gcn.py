"""ST-GCN (Yan et al., AAAI 2018) in the form that SkeletonCLR and its descendants use, on `skelops.nn.STGCNBlock`."""

from __future__ import annotations

import torch
from skelops.methods.encoders.encoder import Encoder
from torch import Tensor, nn

from skelops.graphs import Layout, adjacency
from skelops.nn import STGCNBlock


class STGCN(Encoder):
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
        ValueError: unknown layout or strategy, a size is out of range, or clips of another shape.
    """

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
        super().__init__(
            layout, in_channels, feature_dim, width=width, feature_dim=feature_dim, dropout=dropout, strategy=strategy
        )
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

    def feature_map(self, clips: Tensor) -> Tensor:
        """The last map (N * M, feature_dim, ceil(T / 4), V), clip-major."""
        x = self._bodies(clips, self.data_bn)
        for block, importance in zip(self.st_gcn_networks, self.edge_importance, strict=True):
            x = self._run(block, x, self.A * importance)
        return x
