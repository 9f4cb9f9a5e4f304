"""Squeeze and mask pooling as modules."""

from __future__ import annotations

from torch import Tensor, nn

from skelops._checks import one_of, positive_integer
from skelops.ops import mask_pool as _mask_pool
from skelops.ops import squeeze_pool as _squeeze_pool


class SqueezePool(nn.Module):
    """`skelops.squeeze_pool`: means over joints, over frames and over both, averaged over the bodies of a clip.

    Args:
        bodies: bodies per clip, in consecutive rows of the input.

    Raises:
        ValueError: ``bodies`` is no positive integer.
    """

    def __init__(self, bodies: int = 1) -> None:
        super().__init__()
        positive_integer("bodies", bodies)
        self.bodies = bodies

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> _squeeze_pool.SqueezePool:
        """(N * bodies, C, T, V), valid frames (N * bodies,) -> frames (N, C, T), joints (N, C, V), mean (N, C)."""
        return _squeeze_pool.squeeze_pool(x, lengths, self.bodies)

    def extra_repr(self) -> str:
        return f"bodies={self.bodies}"


class MaskPool(nn.Module):
    """`skelops.mask_pool`: means inside and outside a mask.

    Args:
        divide_by: "mask" (by the sum of the mask on each side) or "size" (by T * V).

    Raises:
        ValueError: ``divide_by`` is unknown.
    """

    def __init__(self, divide_by: str = "mask") -> None:
        super().__init__()
        one_of("divide_by", divide_by, _mask_pool.DIVISORS)
        self.divide_by = divide_by

    def forward(self, x: Tensor, mask: Tensor) -> _mask_pool.MaskPool:
        """(B, C, T, V) with a mask (T, V), (N, T, V) or (B, C, T, V) -> inside (B, C), outside (B, C)."""
        return _mask_pool.mask_pool(x, mask, self.divide_by)

    def extra_repr(self) -> str:
        return f"divide_by={self.divide_by!r}"
