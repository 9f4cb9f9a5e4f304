"""Channel sums that an op hands on with its map, and their gradient: BatchNorm then costs no pass of its own."""

from __future__ import annotations

from typing import NamedTuple

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
