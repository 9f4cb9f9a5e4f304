"""Graph convolution and the ST-GCN block as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skelops.ops.graph_conv import graph_conv


class GraphConv(nn.Module):
    """`skelops.graph_conv` with its weight: K 1x1 convolutions, each aggregated over joints by its adjacency subset.

    The parameters are those of ST-GCN's released ConvTemporalGraphical with temporal kernel 1 (``conv.weight``
    (K * O, C, 1, 1), ``conv.bias`` (K * O,)), so its checkpoints load and it initialises alike.

    Args:
        in_channels: C.
        out_channels: O.
        subsets: K, the first axis of the adjacency.
        bias: whether the convolutions have a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, subsets: int, bias: bool = True) -> None:
        super().__init__()
        self.subsets = subsets
        self.conv = nn.Conv2d(in_channels, out_channels * subsets, 1, bias=bias)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """(B, C, T, V) with adjacency (K, V, V) or (B, K, V, V) -> (B, O, T, V)."""
        weight = self.conv.weight.view(self.subsets, -1, self.conv.in_channels)
        bias = None if self.conv.bias is None else self.conv.bias.view(self.subsets, -1)
        y = graph_conv(x, weight, adjacency, bias)
        assert isinstance(y, Tensor)
        return y


class STGCNBlock(nn.Module):
    """One block of ST-GCN: ``relu(dropout(BN(conv_t(relu(BN(graph_conv(x)))))) + residual(x))``.

    Parameter names follow the released ``st_gcn`` block (``gcn.conv``, ``tcn.0``, ``tcn.2``, ``tcn.3``, ``residual.0``,
    ``residual.1``).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        subsets: K, the first axis of the adjacency.
        kernel_size: frames that the temporal convolution spans, odd.
        stride: temporal stride; T frames become ``ceil(T / stride)``.
        dropout: probability of zeroing an element before the residual is added.
        residual: whether there is a residual connection (identity where shapes allow it, else a strided 1x1 convolution
            and BatchNorm).

    Raises:
        ValueError: ``kernel_size`` is even.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        subsets: int,
        kernel_size: int = 9,
        stride: int = 1,
        dropout: float = 0.0,
        residual: bool = True,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number of frames, got {kernel_size}")
        self.gcn = GraphConv(in_channels, out_channels, subsets)
        self.tcn = nn.Sequential(
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, (kernel_size, 1), (stride, 1), (kernel_size // 2, 0)),
            nn.BatchNorm2d(out_channels),
            nn.Dropout(dropout, inplace=True),
        )
        self.residual: nn.Module | None = None
        if residual and in_channels == out_channels and stride == 1:
            self.residual = nn.Identity()
        elif residual:
            self.residual = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, (stride, 1)), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """(B, C, T, V) with adjacency (K, V, V) -> (B, out_channels, ceil(T / stride), V)."""
        y = self.tcn(self.gcn(x, adjacency))
        return torch.relu_(y if self.residual is None else y.add_(self.residual(x)))
