"""STD-CL (later CSRE): Zhang et al., Spatial-Temporal Decoupling Contrastive Learning (arXiv 2312.15144).

"Released" is github.com/zhshj0110/CSRE at fd0b34e, which has the Hyperformer encoder alone and 64 frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from skelops.methods.encoders import Encoder
from skelops.methods.framework import Batch
from skelops.methods.supervised import Supervised
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import skelops
from skelops._checks import positive
from skelops.nn import Linear, MemoryBank


class SqueezeHead(nn.Module):
    """Tokens of a squeezed map to one embedding: a bottleneck of the channels, then a linear layer on all tokens."""

    def __init__(self, channels: int, tokens: int, embedding: int, reduction: int = 8) -> None:
        super().__init__()
        narrow = channels // reduction
        self.bottleneck = nn.Conv1d(channels, narrow, 1)
        self.embed = Linear(narrow * tokens, embedding)

    def forward(self, squeezed: Tensor) -> Tensor:
        """(N, C, P) -> (N, D)."""
        return self.embed(self.bottleneck(squeezed).flatten(1))


class STDCL(Supervised):
    """STD-CL: supervised training with two contrastive heads on the last map, one for each squeeze of it.

    The embeddings of a clip enter a bank with a slot for every training clip; each is contrasted with the hardest
    clips of its class, against hard and against random clips of other classes (`skelops.bank_contrast`)::

        L = CE + weight (L_spatial + L_temporal)

    The spatial head sees the mean over frames, the temporal head the mean over joints, both averaged over bodies
    (released: after the heads, which are linear, so that it is the same). Heads and banks are not part of the encoder:
    what is kept is the plain encoder with its classifier.

    Args:
        encoder: any encoder; its ``fc`` becomes the classifier.
        num_classes: classes, counted from 0.
        clips: training clips, slots of the banks.
        frames: T' of the last map: the frames of a clip over the temporal stride of the encoder, rounded up.
        embedding: width D of the heads.
        weight: of each contrastive term; 0.5 as released (the paper adds them with weight 1).
        positives, hard_negatives, random_negatives: how many are taken per clip.
        temperature: of both terms.
        label_smoothing: see `Supervised`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        clips: int,
        frames: int,
        embedding: int = 256,
        weight: float = 0.5,
        positives: int = 128,
        hard_negatives: int = 512,
        random_negatives: int = 512,
        temperature: float = 0.8,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(encoder, num_classes, label_smoothing)
        positive("temperature", temperature)
        self.clips, self.frames, self.weight, self.temperature = clips, frames, weight, temperature
        self.mined = {
            "positives": positives,
            "hard_negatives": hard_negatives,
            "random_negatives": random_negatives,
        }
        channels, joints = encoder.map_channels, encoder.layout.num_joints
        self.heads = nn.ModuleDict(
            {
                "spatial": SqueezeHead(channels, joints, embedding),
                "temporal": SqueezeHead(channels, frames, embedding),
            }
        )
        self.banks = nn.ModuleDict({name: MemoryBank(embedding, clips) for name in self.heads})

    def step(self, batch: Batch, view: Callable[[Tensor], Tensor], generator: Generator | None) -> dict[str, Tensor]:
        """One view, the labels, and the places of the clips in the banks."""
        return self(view(batch.clips), batch.labels, batch.indices, generator)

    def forward(
        self, clips: Tensor, labels: Tensor, indices: Tensor | None = None, generator: Generator | None = None
    ) -> dict[str, Tensor]:
        """Losses on clips (N, C, T, V, M) with labels (N,), which are the clips ``indices`` (N,) of the training set.

        Without indices the clips are none of it: the loss is the cross-entropy alone, and the banks stay as they are.

        Returns:
            Scalars: ``loss``, its parts ``loss_class``, ``loss_spatial``, ``loss_temporal``, and ``accuracy``.
        """
        features, pooled = self.encoder_q.features_and_squeezes(clips)
        logits = self.encoder_q.fc(features)
        of_class = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.argmax(1) == labels).float().mean()
        if indices is None:
            return {"loss": of_class, "accuracy": accuracy}
        squeezes = {"spatial": pooled.joints, "temporal": pooled.frames}
        losses = {}
        for name, squeezed in squeezes.items():
            bank: Any = self.banks[name]
            found = self.heads[name](squeezed)
            bank.write_(normalize(found.detach().float(), dim=1), labels, indices)
            seed = torch.randint(2**63 - 1, (1,), generator=generator, device=clips.device)
            losses[name], _ = skelops.bank_contrast(
                found, labels, bank.bank, bank.labels, bank.visited, seed, temperature=self.temperature, **self.mined
            )
        return {
            "loss": of_class + self.weight * (losses["spatial"] + losses["temporal"]),
            "loss_class": of_class.detach(),
            **{f"loss_{name}": value.detach() for name, value in losses.items()},
            "accuracy": accuracy,
        }
