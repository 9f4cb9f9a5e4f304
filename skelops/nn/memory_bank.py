"""A memory bank with a slot for every training clip."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """The latest embedding of every training clip, its label, and whether the clip was seen yet.

    Args:
        dim: width D of an embedding.
        size: training clips Q.

    Attributes:
        bank: (Q, D) float32, zero where a clip was not seen.
        labels: (Q,) int64.
        visited: (Q,) bool.

    Raises:
        ValueError: ``dim`` or ``size`` is not above zero.

    The banks of STD-CL; pass the three buffers to `skelops.bank_contrast`.
    """

    bank: Tensor
    labels: Tensor
    visited: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("size", size)):
            if value < 1:
                raise ValueError(f"{name}: expected a number above zero, got {value}")
        self.register_buffer("bank", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("visited", torch.zeros(size, dtype=torch.bool))

    @torch.no_grad()
    def write_(self, embeddings: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Replaces the embeddings (N, D) and labels (N,) of the clips ``indices`` (N,)."""
        self.bank.index_copy_(0, indices, embeddings.to(self.bank.dtype))
        self.labels.index_copy_(0, indices, labels)
        self.visited.index_fill_(0, indices, True)

    def extra_repr(self) -> str:
        return f"dim={self.bank.shape[1]}, size={self.bank.shape[0]}"
