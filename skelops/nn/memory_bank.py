"""A memory bank with a slot for every training clip."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skelops._checks import Shapes, positive_integer, same_device


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
        ValueError: ``dim`` or ``size`` is no positive integer.

    The banks of STD-CL; pass the three buffers to `skelops.bank_contrast`.
    """

    bank: Tensor
    labels: Tensor
    visited: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("size", size)):
            positive_integer(name, value)
        self.register_buffer("bank", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("visited", torch.zeros(size, dtype=torch.bool))

    @torch.no_grad()
    def write_(self, embeddings: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Replaces the embeddings (N, D), the labels (N,) and marks as seen the clips ``indices`` (N,), both int64.

        Of a clip that is there more than once, the last embedding is kept.

        Raises:
            TypeError: an argument is no tensor of its dtype.
            ValueError: shapes or devices do not fit together or the bank.
        """
        shapes = Shapes()
        shapes.check("bank", self.bank, "Q D")
        shapes.check("embeddings", embeddings, "N D")
        shapes.check("labels", labels, "N", dtype=torch.int64)
        shapes.check("indices", indices, "N", dtype=torch.int64)
        same_device(bank=self.bank, embeddings=embeddings, labels=labels, indices=indices)
        if not len(indices):
            return
        # Which of several writes to one place wins is not defined on a GPU: all of them write what the last one has.
        places = torch.arange(len(indices), device=indices.device)
        last = torch.where(indices[:, None] == indices, places, -1).amax(1)
        self.bank.index_copy_(0, indices, embeddings[last].to(self.bank.dtype))
        self.labels.index_copy_(0, indices, labels[last])
        self.visited.index_fill_(0, indices, True)

    def extra_repr(self) -> str:
        return f"dim={self.bank.shape[1]}, size={self.bank.shape[0]}"
