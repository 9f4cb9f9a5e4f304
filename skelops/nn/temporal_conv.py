"""Temporal convolution as a module."""

from __future__ import annotations

from torch import Tensor, nn

from skelops._stats import MapStats
from skelops.ops.temporal_conv import temporal_conv


class TemporalConv(nn.Conv2d):
    """`skelops.temporal_conv` with its weight: the ``nn.Conv2d`` with kernel (k, 1) that encoders have along frames.

    Parameters, their initialisation and ``state_dict`` are those of ``nn.Conv2d(in_channels, out_channels,
    (kernel_size, 1), (stride, 1), (kernel_size // 2 * dilation, 0), (dilation, 1), groups)``.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: k, the frames that the convolution spans (before dilation): 1, 3, 5, 7 or 9.
        stride: temporal stride; T frames become ceil(T / stride).
        dilation: frames between two taps.
        groups: groups of channels that are convolved apart.
        bias: whether there is a bias.

    Raises:
        ValueError: ``kernel_size`` is none of these.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        if kernel_size not in (1, 3, 5, 7, 9):
            raise ValueError(f"kernel_size: expected 1, 3, 5, 7 or 9 frames, got {kernel_size!r}")
        padding = kernel_size // 2 * dilation
        super().__init__(
            in_channels, out_channels, (kernel_size, 1), (stride, 1), (padding, 0), (dilation, 1), groups, bias
        )

    def forward(  # type: ignore[override]
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, stats: bool = False
    ) -> Tensor | MapStats:
        """(B, C, T, V) -> (B, O, ceil(T / stride), V), or `MapStats` of it; see `skelops.temporal_conv`."""
        return temporal_conv(
            x,
            self.weight.squeeze(3),
            self.bias,
            scale,
            shift,
            stride=self.stride[0],
            dilation=self.dilation[0],
            groups=self.groups,
            stats=stats,
        )
