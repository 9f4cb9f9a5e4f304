"""Fine-tuning: the encoder of a checkpoint, trained on with labels."""

from __future__ import annotations

from typing import Literal

import torch
from skelops.methods.checkpoint import build_encoder, load_encoder, read_checkpoint
from skelops.methods.supervised import Supervised
from torch import Tensor

from skelops.data.transforms import motion_stream


class FineTuned(Supervised):
    """Supervised training of the encoder that a checkpoint holds, with a new classifier; all weights are trained.

    Kind, hyper-parameters and weights of the encoder come from the checkpoint, whatever framework trained it and on
    whatever data set of the same joints.

    Args:
        pretrained: checkpoint of ``skelops train``.
        num_classes: classes of the data, counted from 0.
        label_smoothing: see `Supervised`.
        from_scratch: take the kind and the hyper-parameters of the encoder alone and start from new weights: what
            pretraining is compared with.
        streams: "joint", or "both" as SDS-CL fine-tunes: joint and motion stream go through the one encoder and the one
            classifier, and their logits are added.
        frozen_statistics: normalise with the running statistics, which stay as they are, and drop nothing: the encoder
            trains in evaluation mode, as the releases of SkeleMixCLR and SkeAttnCLR fine-tune.

    Raises:
        ValueError: an argument is out of range, ``pretrained`` is no checkpoint, or statistics are to be frozen where
            there are none.
    """

    def __init__(
        self,
        pretrained: str,
        num_classes: int,
        label_smoothing: float = 0.0,
        from_scratch: bool = False,
        streams: Literal["joint", "both"] = "joint",
        frozen_statistics: bool = False,
    ) -> None:
        if streams not in ("joint", "both"):
            raise ValueError(f"streams: expected joint or both, got {streams!r}")
        if frozen_statistics and from_scratch:
            raise ValueError("frozen_statistics: expected false with from_scratch, which has no statistics, got true")
        checkpoint = read_checkpoint(pretrained)
        encoder = build_encoder(checkpoint) if from_scratch else load_encoder(checkpoint)
        super().__init__(encoder, num_classes, label_smoothing)
        self.with_motion, self.frozen_statistics = streams == "both", frozen_statistics
        self.train()

    def train(self, mode: bool = True) -> FineTuned:
        """Training mode, in which frozen statistics stay frozen."""
        super().train(mode)
        if self.frozen_statistics:
            self.encoder_q.eval()
        return self

    def streams(self, clips: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What is classified of clips (N, C, T, V, M), of which a view is drawn: the clips, and beside their bodies the
        motion stream where both are used, (N, C, T, V, 2 M)."""
        return torch.cat([clips, motion_stream(clips, lengths)], dim=4) if self.with_motion else clips

    def logits(self, streams: Tensor) -> Tensor:
        """Logits (N, num_classes) of `streams`."""
        if not self.with_motion:
            return self.encoder_q(streams)
        return self.encoder_q(torch.cat(streams.chunk(2, dim=4))).unflatten(0, (2, -1)).sum(0)
