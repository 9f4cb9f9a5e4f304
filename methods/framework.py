"""What every framework offers to training and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from skelops.methods.encoders import Encoder
from torch import Generator, Tensor, nn


class Framework(nn.Module, ABC):
    """A framework: one training step as `forward`, and the encoder that it trains.

    Attributes:
        encoder_q: the encoder to keep.
    """

    encoder_q: Encoder

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Scalars of a step: ``loss`` to minimise, and what to log.

        Whatever a framework keeps between steps (momentum encoder, queue) is updated here.
        """

    def step(self, view: Callable[[], Tensor], labels: Tensor, generator: Generator | None) -> dict[str, Tensor]:
        """`forward` on what the framework takes of a batch: by default two views, and the generator.

        Args:
            view: draws a random view (N, C, T, V, M) of the clips of the batch.
            labels: (N,) int64.
            generator: of the device of the clips, draws what is random beside dropout.
        """
        return self(view(), view(), generator)
