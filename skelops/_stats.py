"""Channel sums that an op hands on with its map, and their gradient: BatchNorm then costs no pass of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MapStats(NamedTuple):
    """What an op returns with ``stats=True``.

    Attributes:
        output: the map (B, O, T, V).
        sum: sum of every output channel over B, T and V, (O,), float64.
        square_sum: the same of the squares.
    """

    output: Tensor
    sum: Tensor
    square_sum: Tensor


def empty_sums(y: Tensor, stats: bool) -> tuple[Tensor, Tensor]:
    """Memory for the two sums of every channel of a map; of none without ``stats``."""
    C = y.shape[1] if stats else 0
    return y.new_empty(C, dtype=torch.float64), y.new_empty(C, dtype=torch.float64)


def with_sums(y: Tensor, stats: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A map and the two sums of its channels, which are empty without ``stats``."""
    if not stats:
        return y, *empty_sums(y, stats)
    wide = y.double()
    return y, wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))


def used_sums(
    y: Tensor | None, grad_sum: Tensor | None, grad_square_sum: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What backward needs of the saved map and the gradients of its sums; ``y`` is None where none were asked for.

    The sums are then empty, but a compiler may still bring their gradients.
    """
    if y is None:
        return None, None, None
    return None if grad_square_sum is None else y, grad_sum, grad_square_sum


def with_stats_gradient(
    grad: Tensor, y: Tensor | None, grad_sum: Tensor | None, grad_square_sum: Tensor | None
) -> Tensor:
    """The gradient of a map ``y`` of which the sums were used, too: ``grad + grad_sum + 2 grad_square_sum y``."""
    if grad_sum is not None:
        grad = grad + grad_sum[:, None, None].to(grad.dtype)
    if grad_square_sum is not None:
        assert y is not None
        grad = grad + (2 * grad_square_sum[:, None, None]).to(grad.dtype) * y
    return grad
