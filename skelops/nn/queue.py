"""The memory queue of MoCo-style methods as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skelops._checks import Shapes, positive_integer
from skelops.ops.enqueue import enqueue_


class MomentumQueue(nn.Module):
    """A ring buffer of keys that serve as negatives.

    Buffers ``queue`` (dim, size), whose columns start as Gaussian vectors of unit length, and ``queue_ptr`` (1,),
    int64: the names and shapes of MoCo (He et al. 2020). The state_dict of a model that holds them itself loads with
    ``queue.load_state_dict(state_dict, strict=False)``.

    Pass ``module.queue`` to `skelops.info_nce` before the keys of the step are written; no clone is needed. Where
    ``dim`` equals ``size``, pass ``module.queue.t()``: the op cannot tell the axes of a square queue apart.

    Args:
        dim: width D of a key.
        size: number of slots Q.
        generator: random numbers of the first content; None takes torch's own.

    Raises:
        ValueError: ``dim`` or ``size`` is no positive integer.
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, dim: int, size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("size", size)):
            positive_integer(name, value)
        self.register_buffer("queue", nn.functional.normalize(torch.randn(dim, size, generator=generator), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    def enqueue_(self, keys: Tensor) -> None:
        """Writes keys (n, dim) over the oldest ones; see `skelops.enqueue_`.

        Raises:
            TypeError: ``keys`` is no floating-point tensor.
            ValueError: the keys have another width than the queue, or lie on another device.
        """
        # The op would guess from the width of the keys which axis of the queue is which.
        shapes = Shapes()
        shapes.sizes["dim"] = self.queue.shape[0]
        shapes.check("keys", keys, "n dim")
        enqueue_(self.queue.t(), keys, self.queue_ptr)

    def extra_repr(self) -> str:
        return f"dim={self.queue.shape[0]}, size={self.queue.shape[1]}"
