"""SkeleMixCLR: Chen et al., Contrastive Learning from Spatio-Temporal Mixed Skeleton Sequences (arXiv 2207.03065).

"Released" below is github.com/czhaneva/SkeleMixCLR at 4538d6c: net/skeletonclr_multi_swap.py, its v2 (the + variant)
and processor/pretrain_skeletonclr_multi_swap.py.
"""

from __future__ import annotations

import torch
from skelops.methods.encoders import Encoder
from skelops.methods.momentum_contrast import MomentumContrast, released_or_default
from torch import Generator, Tensor, nn

from skelops.augment import skelemix
from skelops.nn import Linear


def projector(inputs: int, hidden: int, outputs: int, bias: bool = True) -> nn.Sequential:
    """Features to embeddings (released: `fc` with a batch normalisation that CrosSCLR and AimCLR do not have)."""
    return nn.Sequential(Linear(inputs, hidden, bias), nn.BatchNorm1d(hidden), nn.ReLU(), Linear(hidden, outputs, bias))


class SkeleMixCLR(MomentumContrast):
    """SkeleMixCLR and SkeleMixCLR+.

    With unit embeddings q (query), p and c (inside and outside the paste of the mixed query, through mask pooling),
    k (key), the queue Q and the partner r(i) that clip i was mixed with, every term is InfoNCE at one temperature::

        L_ins: q_i against k_i     | negatives Q
        L_p:   p_i against k_r(i)  | negatives Q and sg(c_i)
        L_c:   c_i against k_i     | negatives Q and sg(p_i)

        SkeleMixCLR:  L = L_ins + mean over mixes (L_p + L_c) / 2
        SkeleMixCLR+: L = L_ins + sum  over mixes (L_p + L_c) / 2

    (Section 3 of the paper; released `forward` of both files, weights of the released configuration.)

    Args:
        encoder: the query encoder, without projector.
        embedding: width D of the embeddings.
        queue_size: negatives in the queue.
        temperature: of every term.
        momentum: of the key encoder.
        mixes: mixed versions of the query per step; 1 in SkeleMixCLR, 3 in SkeleMixCLR+.
        plus: SkeleMixCLR+, the sum over mixes; False takes their mean.
        copy_after_init: see `MomentumContrast`.
        released_weights: draw the first weights as the released trainer does, from N(0, 0.02), which learns more slowly
            in short runs than PyTorch's default.
        fill_first: see `MomentumContrast`.

    Raises:
        ValueError: the encoder does not pool its last map, or ``mixes`` is below 1.
    """

    #: `skelops.augment.skelemix` finds partners among no fewer.
    least_clips = 3

    def __init__(
        self,
        encoder: Encoder,
        embedding: int = 128,
        queue_size: int = 32768,
        temperature: float = 0.2,
        momentum: float = 0.999,
        mixes: int = 1,
        plus: bool = False,
        copy_after_init: bool = True,
        released_weights: bool = False,
        fill_first: bool = False,
    ) -> None:
        encoder.check_pools_its_map("SkeleMixCLR")
        if mixes < 1:
            raise ValueError(f"mixes: expected at least 1, got {mixes}")
        encoder.fc = projector(encoder.feature_dim, encoder.feature_dim, embedding)
        initialise = released_or_default(released_weights)
        super().__init__(
            encoder, embedding, queue_size, temperature, momentum, copy_after_init, initialise, fill_first=fill_first
        )
        self.mixes, self.plus = mixes, plus

    def forward(self, query: Tensor, key: Tensor, generator: Generator | None = None) -> dict[str, Tensor]:
        """Losses of a step on two views (N, C, T, V, M); the generator draws the mixes.

        Returns:
            Scalars: ``loss`` and its parts ``loss_instance``, ``loss_trimmed``, ``loss_truncated``, and
            ``accuracy``, the share of queries whose key beats every negative.
        """
        layout, stride = self.encoder_q.layout, self.encoder_q.temporal_stride
        mixes = [skelemix(query, layout, generator, stride=stride) for _ in range(self.mixes)]
        q = self.encoder_q(query)
        pasted = [self.encoder_q(mix.clips, mix.mask) for mix in mixes]

        (k,) = self.keys(key)
        anchors = torch.stack([q, *(anchor for pair in pasted for anchor in pair)])
        positives = torch.stack([k, *(positive for mix in mixes for positive in (k[mix.partner], k))])
        others = torch.stack([other.detach() for p, c in pasted for other in (c, p)])
        losses, accuracy = self.contrast(anchors, positives, others)
        instance = losses[0]
        trimmed, truncated = losses[1:].unflatten(0, (-1, 2)).mean(0)

        # Only the keys enter the queue, and only after the logits.
        self.queue.enqueue_(k)
        weight = self.mixes if self.plus else 1
        return {
            "loss": self.once_filled(instance + weight * (trimmed + truncated) / 2, len(query)),
            "loss_instance": instance.detach(),
            "loss_trimmed": trimmed.detach(),
            "loss_truncated": truncated.detach(),
            "accuracy": accuracy,
        }
