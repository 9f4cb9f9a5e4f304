"""Memory formats of feature maps: kernels read and write contiguous and channels_last maps, and keep the format."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether a (B, C, T, V) map lies channels_last, be it as a slice of the channels of a wider map; one that is both
    formats at once counts as contiguous."""
    if x.is_contiguous():
        return False
    if x.is_contiguous(memory_format=torch.channels_last):
        return True
    _, C, T, V = x.shape
    of_row, of_channel, of_frame, pitch = x.stride()
    return of_channel == 1 and pitch >= C > 1 and of_frame == V * pitch and of_row == T * of_frame


def empty_map(x: torch.Tensor, shape: Sequence[int], channels_last: bool) -> torch.Tensor:
    """An uninitialised (B, C, T, V) map of the dtype and device of ``x`` in one of the two formats."""
    if not channels_last:
        return x.new_empty(shape)  # half the time of torch.empty
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def in_format(x: torch.Tensor, channels_last: bool, slices: bool = False) -> torch.Tensor:
    """A (B, C, T, V) map in one of the two formats, copied where it is in another.

    Args:
        x: the map.
        channels_last: the format; a slice of the channels of a channels_last map is never copied.
        slices: a slice of the channels of a contiguous map is not copied either.
    """
    if channels_last:
        return x if is_channels_last(x) else x.contiguous(memory_format=torch.channels_last)
    _, _, T, V = x.shape
    return x if slices and x.stride()[1:] == (T * V, V, 1) else x.contiguous()


def kernel_map(x: torch.Tensor, slices: bool = False) -> tuple[torch.Tensor, bool]:
    """A (B, C, T, V) map in one of the two formats (any other is copied), and whether it is channels_last.

    Its strides are those of the format, also along axes of size 1, where torch does not mind what they are.

    Args:
        x: the map.
        slices: a slice of the channels of a contiguous map is not copied either.
    """
    channels_last = is_channels_last(x)
    x = x if channels_last else in_format(x, False, slices)
    if 1 in x.shape:
        x = x.as_strided(x.shape, _strides(x, channels_last))
    return x, channels_last


def _strides(x: torch.Tensor, channels_last: bool) -> tuple[int, ...]:
    """Those that a map in one of the two formats has along axes of more than one element, and would have along all."""
    B, C, T, V = x.shape
    if not channels_last:
        return x.stride(0) if B > 1 else C * T * V, T * V, V, 1
    row = pitch(x, True)
    return T * V * row, 1, V * row, row


def pitch(x: torch.Tensor, channels_last: bool) -> int:
    """Of a map from `kernel_map`: the distance between rows of channels, where it lies contiguous between samples."""
    if not channels_last:
        return x.stride(0)
    # The stride of an axis of size 1 may be anything.
    return next((x.stride(axis) for axis in (3, 2, 0) if x.shape[axis] > 1), x.shape[1])
