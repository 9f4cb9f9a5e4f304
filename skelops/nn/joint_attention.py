"""The block of DSTA-Net as SDS-CL uses it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from skelops.nn.batch_norm import uses_batch_statistics
from skelops.nn.recomputing import recomputed
from skelops.nn.scaled import ConvNorm, ScaledMap, initialise, join, normalised, pointwise, pointwise_normalised
from skelops.ops.graph_conv import graph_conv
from skelops.ops.joint_attention import joint_attention

SLOPE = 0.1


class JointEncoding(nn.Module):
    """Sinusoids over the number of a joint, (1, C, 1, V); published ones repeat it for every frame and load, too."""

    pe: Tensor

    def __init__(self, channels: int, joints: int) -> None:
        super().__init__()
        rate = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
        angle = torch.arange(joints)[:, None] * rate
        pe = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :channels]
        self.register_buffer("pe", pe.T[None, :, None].clone(memory_format=torch.contiguous_format))
        self.register_load_state_dict_pre_hook(self._one_frame)

    @staticmethod
    def _one_frame(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *others: object) -> None:
        if f"{prefix}pe" in state_dict:
            state_dict[f"{prefix}pe"] = state_dict[f"{prefix}pe"][:, :, :1]

    def forward(self, x: Tensor) -> Tensor:
        """The encoding to add to x."""
        # In the format of a channels_last map, whose sum runs a few times slower otherwise.
        return self.pe.to(x.dtype, memory_format=torch.channels_last)


class JointAttentionBlock(nn.Module):
    """Spatial attention, feed-forward and a temporal convolution, each with a residual and LeakyReLU(0.1)::

        A = alphas * tanh(sum_{c,t} q[c,t,v] k[c,t,w] / (inner * T)) + attention0s,  q, k = conv1x1(x + encoding)
        y = act(BN(conv1x1(x A)) + downs1(x));  y = act(BN(conv1x1(y)) + downs2(x))
        z = act(BN(conv7x1(y)) + downt2(y))

    Parameter names follow the released ``STAttentionBlock`` without temporal attention (``pes.pe``, ``in_nets``,
    ``alphas``, ``attention0s``, ``out_nets``, ``ff_nets``, ``out_nett``, ``downs1``, ``downs2``, ``downt2``).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        inner: channels of a head of q and k.
        joints: V.
        heads: S, the subsets of the attention.
        stride: temporal stride.

    Shi et al., "Decoupled Spatial-Temporal Attention Network" (ACCV 2020), as released with SDS-CL (dstanet.py).
    """

    def __init__(
        self, in_channels: int, out_channels: int, inner: int, joints: int, heads: int = 4, stride: int = 1
    ) -> None:
        super().__init__()
        self.heads = heads
        self.pes = JointEncoding(in_channels, joints)
        self.in_nets = nn.Conv2d(in_channels, 2 * heads * inner, 1)
        self.alphas = nn.Parameter(torch.ones(1, heads, 1, 1))
        self.attention0s = nn.Parameter(torch.ones(1, heads, joints, joints) / joints)
        self.out_nets = ConvNorm(in_channels * heads, out_channels)
        self.ff_nets = ConvNorm(out_channels, out_channels)
        self.out_nett = ConvNorm(out_channels, out_channels, 7, stride)
        changes = in_channels != out_channels or stride != 1
        self.downs1, self.downs2 = (ConvNorm(in_channels, out_channels) if changes else None for _ in range(2))
        self.downt2 = ConvNorm(out_channels, out_channels, 1, stride) if changes else None
        initialise(self)

    def _shortcuts(self, x: Tensor) -> tuple[Tensor | ScaledMap, Tensor | ScaledMap]:
        if self.downs1 is None or self.downs2 is None:
            return x, x
        return pointwise_normalised(x, [self.downs1, self.downs2]).halves()

    def _attend(self, x: Tensor) -> ScaledMap:
        source, target = pointwise(recomputed(torch.add, x, self.pes(x)), [self.in_nets], embeds=True).chunk(2, dim=1)
        topology = joint_attention(source, target, self.attention0s[0], self.alphas.flatten(), heads=self.heads)
        conv, bn = self.out_nets.convolution, self.out_nets.norm
        weight = conv.weight.view(-1, self.heads, x.shape[1]).transpose(0, 1)
        return normalised(graph_conv(x, weight, topology, conv.bias, stats=uses_batch_statistics(bn)), bn)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, out_channels, ceil(T / stride), V)."""
        first, second = self._shortcuts(x)
        y = recomputed(join, self._attend(x), first, SLOPE)
        y = join(self.ff_nets(y), second, SLOPE)
        residual = y if self.downt2 is None else self.downt2(y)
        return join(self.out_nett(y), residual, SLOPE)
