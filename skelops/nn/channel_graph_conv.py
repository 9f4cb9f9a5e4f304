"""The channel-wise topology refinement of CTR-GCN."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from skelops.nn.batch_norm import uses_batch_statistics
from skelops.nn.recomputing import recomputed
from skelops.nn.scaled import initialise, join, normalised, pointwise, shortcut, stacked
from skelops.ops.channel_graph_conv import channel_graph_conv
from skelops.ops.squeeze_pool import squeeze_pool


class Topology(nn.Module):
    """The 1x1 convolutions of one subset: target and source embedding, features, embedding to channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        reduced = 8 if in_channels <= 9 else in_channels // 8
        self.conv1 = nn.Conv2d(in_channels, reduced, 1)
        self.conv2 = nn.Conv2d(in_channels, reduced, 1)
        self.conv3 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv4 = nn.Conv2d(reduced, out_channels, 1)


class ChannelGraphConv(nn.Module):
    """``relu(BN(sum_k z_k) + down(x))`` where every channel is aggregated over a topology of its own::

        z_k[c,t,w] = sum_v conv3_k(x)[c,t,v] (alpha conv4_k(m_k)[c,v,w] + PA_k[w,v])
        m_k[v,w] = tanh(mean_t conv1_k(x)[t,w] - mean_t conv2_k(x)[t,v])

    The embeddings are taken of the mean over frames, which is the mean of the embeddings; topologies are built on chip
    and never stored. Parameter names follow the released ``unit_gcn`` (``convs.{k}.conv1`` to ``conv4``, ``PA``,
    ``alpha``, ``bn``, ``down.0``, ``down.1``); as there, ``PA[k, w, v]`` carries joint v to joint w.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        adjacency: (K, V, V) from which PA starts; ``adjacency[k, v, w]`` carries joint v to joint w.

    Chen et al., "Channel-wise Topology Refinement Graph Convolution" (ICCV 2021), equations 4 to 9.
    """

    def __init__(self, in_channels: int, out_channels: int, adjacency: Tensor) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Topology(in_channels, out_channels) for _ in adjacency)
        self.down = shortcut(in_channels, out_channels)
        self.PA = nn.Parameter(adjacency.mT.clone(memory_format=torch.contiguous_format))
        self.alpha = nn.Parameter(torch.zeros(1))
        self.bn = nn.BatchNorm2d(out_channels)
        initialise(self)
        nn.init.constant_(self.bn.weight, 1e-6)

    def _all(self, *names: str) -> Iterator[nn.Module]:
        """The convolutions of these names, of all subsets."""
        return (topology.get_submodule(name) for name in names for topology in self.convs)

    def _embeddings(self, x: Tensor) -> tuple[Tensor, ...]:
        """Target and source embeddings of the mean over frames, (B, K, R, V) each."""
        weight, bias = stacked(self._all("conv1", "conv2"))
        assert bias is not None
        pooled = squeeze_pool(x).joints
        embedded = torch.baddbmm(bias[:, None], weight.squeeze(2).expand(len(x), -1, -1), pooled)
        subsets = len(self.convs)
        # Not -1: of an empty batch, any number of channels would fit.
        return embedded.unflatten(1, (2, subsets, weight.shape[0] // (2 * subsets))).unbind(1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, out_channels, T, V)."""
        target, source = self._embeddings(x)
        features = pointwise(x, self._all("conv3"))
        weight, bias = stacked(self._all("conv4"))
        assert bias is not None
        subsets = len(self.convs)
        y = channel_graph_conv(
            features,
            target,
            source,
            weight.view(subsets, -1, weight.shape[1]),
            bias.view(subsets, -1),
            self.alpha,
            self.PA.mT,
            stats=uses_batch_statistics(self.bn),
        )
        return recomputed(join, normalised(y, self.bn), self.down(x))
