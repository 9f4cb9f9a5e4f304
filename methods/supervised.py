"""Supervised training: an encoder and a linear classifier on its pooled features."""

from __future__ import annotations

import math
from collections.abc import Callable

from skelops.methods.encoders import Encoder
from skelops.methods.framework import Batch, Framework
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy


class Supervised(Framework):
    """Cross-entropy of a linear classifier on the encoder's features, ``fc(encoder.features(clips))``.

    Args:
        encoder: any encoder; its ``fc`` becomes the classifier.
        num_classes: classes, counted from 0.
        label_smoothing: share of the target that is spread evenly over all classes.

    Raises:
        ValueError: ``num_classes`` or ``label_smoothing`` is out of range.

    The classifier starts as in 2s-AGCN and CTR-GCN, from N(0, 2 / num_classes).
    """

    def __init__(self, encoder: Encoder, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected 0 to below 1, got {label_smoothing}")
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        fc = nn.Linear(encoder.feature_dim, num_classes)
        nn.init.normal_(fc.weight, 0.0, math.sqrt(2.0 / num_classes))
        encoder.fc = fc
        self.encoder_q = encoder

    def streams(self, clips: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What is classified of clips (N, C, T, V, M), of which a view is drawn: the clips."""
        return clips

    def logits(self, streams: Tensor) -> Tensor:
        """Logits (N, num_classes) of `streams`."""
        return self.encoder_q(streams)

    def forward(self, streams: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``loss`` of `streams` with labels (N,) int64, and ``accuracy``, the share classified right."""
        logits = self.logits(streams)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": cross_entropy(logits, labels, label_smoothing=self.label_smoothing), "accuracy": accuracy}

    def step(self, batch: Batch, view: Callable[[Tensor], Tensor], generator: Generator | None) -> dict[str, Tensor]:
        """One view, and the labels."""
        return self(view(self.streams(batch.clips, batch.lengths)), batch.labels)
