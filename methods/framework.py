"""What every contrastive framework offers to training and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from skelops.methods.encoders import STGCN
from torch import Generator, Tensor, nn


class Framework(nn.Module, ABC):
    """A contrastive framework: one training step as `forward`, and the encoder that it trains.

    Attributes:
        encoder_q: the encoder to keep.
    """

    encoder_q: STGCN

    @abstractmethod
    def forward(self, query: Tensor, key: Tensor, generator: Generator | None = None) -> dict[str, Tensor]:
        """Scalars of a step on two views (N, C, T, V, M) of the same clips: ``loss`` to minimise, and what to log.

        Whatever a framework keeps between steps (momentum encoder, queue) is updated here. ``generator``, of the
        device of the clips, draws what is random beside dropout.
        """
