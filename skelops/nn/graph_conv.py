"""Graph convolution and the ST-GCN block as modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from skelops._stats import MapStats
from skelops.nn.batch_norm import uses_batch_statistics
from skelops.nn.scaled import ConvNorm, join, normalised, shortcut
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

    def forward(self, x: Tensor, adjacency: Tensor, stats: bool = False) -> Tensor | MapStats:
        """(B, C, T, V) with adjacency (K, V, V) or (B, K, V, V) -> (B, O, T, V), and its channel sums if asked."""
        weight = self.conv.weight.view(self.subsets, -1, self.conv.in_channels)
        bias = None if self.conv.bias is None else self.conv.bias.view(self.subsets, -1)
        return graph_conv(x, weight, adjacency, bias, stats=stats)


class STGCNBlock(nn.Module):
    """One block of ST-GCN: ``relu(dropout(BN(conv_t(relu(BN(graph_conv(x)))))) + residual(x))``.

    Parameter names follow the released ``st_gcn`` block (``gcn.conv``, ``tcn.0``, ``tcn.2``, ``tcn.3``, ``residual.0``,
    ``residual.1``).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        subsets: K, the first axis of the adjacency.
        kernel_size: frames that the temporal convolution spans: 1, 3, 5, 7 or 9.
        stride: temporal stride; T frames become ``ceil(T / stride)``.
        dropout: probability of zeroing an element before the residual is added.
        residual: whether there is a residual connection (identity where shapes allow it, else a strided 1x1 convolution
            and BatchNorm).

    Raises:
        ValueError: ``kernel_size`` is none of these.
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
        self.dropout = dropout
        self.gcn = GraphConv(in_channels, out_channels, subsets)
        # Under the released numbers, between which ReLU and dropout lie: 0 before the convolution, 2 and 3.
        self.tcn = ConvNorm(out_channels, out_channels, kernel_size, stride, names=("2", "3"))
        self.tcn.add_module("0", nn.BatchNorm2d(out_channels))
        self.residual = shortcut(in_channels, out_channels, stride) if residual else None

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """(B, C, T, V) with adjacency (K, V, V) -> (B, out_channels, ceil(T / stride), V)."""
        inner: Any = self.tcn.get_submodule("0")
        y = self.tcn(normalised(self.gcn(x, adjacency, stats=uses_batch_statistics(inner)), inner))
        residual = None if self.residual is None else self.residual(x)
        return join(y, residual, dropout=self.dropout if self.training else 0.0)
