"""What every framework offers to training and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from skelops.methods.encoders import Encoder
from torch import Generator, Tensor, nn


class Batch(NamedTuple):
    """Training clips of a step.

    Attributes:
        clips: (N, C, T, V, M).
        labels: (N,) int64.
        indices: (N,) int64, the places of the clips in the training set.
        lengths: (N,) integers, frames of every clip; None: all T.
    """

    clips: Tensor
    labels: Tensor
    indices: Tensor
    lengths: Tensor | None = None


class Framework(nn.Module, ABC):
    """A framework: one training step as `forward`, and the encoder that it trains.

    Attributes:
        encoder_q: the encoder to keep.
        progress: share of the training that is done, from 0 to 1, set before every step.
        least_clips: the fewest clips that a step takes.
    """

    encoder_q: Encoder
    progress: float = 0.0
    least_clips: int = 1

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Scalars of a step: ``loss`` to minimise, and what to log.

        Whatever a framework keeps between steps (momentum encoder, queue) is updated here.
        """

    def step(self, batch: Batch, view: Callable[[Tensor], Tensor], generator: Generator | None) -> dict[str, Tensor]:
        """`forward` on what the framework takes of a batch: by default two views, and the generator.

        Args:
            batch: the clips, and what is known of them.
            view: draws a random view (N, C, T, V, M) of clips like those of the batch.
            generator: of the device of the clips, draws what is random beside dropout.
        """
        return self(view(batch.clips), view(batch.clips), generator)
