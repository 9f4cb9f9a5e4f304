"""SkeAttnCLR: Hua et al., Part Aware Contrastive Learning for Self-Supervised Action Recognition (IJCAI 2023).

"Released" is github.com/GitHubOfHyl97/SkeAttnCLR at e3f05c6: net/skeattnclr.py, which crashes on the names of its
predictors; here ``salient`` and ``rest`` stand for its ``_s`` (used as ``_p``) and ``_ns`` (used as ``_c``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from skelops.methods.encoders import Encoder
from skelops.methods.momentum_contrast import MomentumContrast, released_or_default
from skelops.methods.skelemix_clr import projector
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

import skelops
from skelops.augment import skelemix
from skelops.nn import Linear


class AttentionMask(nn.Module):
    """Soft mask of a feature map from attention among its cells (the multi-head attention mask of section 3.2)::

        mask = sigmoid(2 W_o MHSA(LayerNorm(x)))      tokens are the T * V cells, with C features each

    Args:
        channels: C.
        heads: of the attention, a divisor of C.
    """

    def __init__(self, channels: int, heads: int = 8) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads: expected a divisor of the {channels} channels, got {heads}")
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = Linear(channels, 3 * channels)
        self.out = Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> mask (B, C, T, V) in [0, 1], channels_last."""
        tokens = x.permute(0, 2, 3, 1)
        qkv = self.qkv(self.norm(tokens.flatten(1, 2))).unflatten(2, (3, self.heads, -1))
        y = scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
        return torch.sigmoid(2 * self.out(y)).view(tokens.shape).permute(0, 3, 1, 2)


class SkeAttnCLR(MomentumContrast):
    """SkeAttnCLR: InfoNCE of whole clips, and of what attention finds salient in them, and of the rest.

    With F the last map of the mixed query and a its mask, means over all cells ``p = mean(F a)``,
    ``c = mean(F (1 - a))`` and one projector g, queries go through predictors h, keys k come from the other view, whose
    map is pooled with the same mask; Q is the queue of whole-clip keys::

        L_z: h_z(g(mean F_q))  against k_z | negatives Q
        L_s: q_s = h_s(g(p))   against k_s | negatives Q and sg(q_r)
        L_r: q_r = h_r(g(c))   against k_r | negatives Q and sg(q_s)
        L = L_z + salience L_s + (1 - salience) L_r

    (Equations 6 to 10 of the paper; released `forward`; g and h have no biases.) Its queues of salient keys, which are
    written and never read, are left out, and so is the prediction of the mixed clip as a whole.

    The key encoder takes its step at the start of the next training step instead of the end of this, which is the same:
    momentum rises from 0.996 to 1 along a cosine, and statistics of normalisations move along.

    Args:
        encoder: the query encoder, without projector.
        embedding: width D of the embeddings.
        queue_size: negatives in the queue.
        temperature: of every term.
        momentum: of the key encoder at the start.
        salience: mu, weight of the salient term; 1 in the released configuration of NTU-60 joints, 0.5 in all others.
        heads: of the attention.
        copy_after_init: see `MomentumContrast`.
        released_weights: draw the first weights as the released trainer does, from N(0, 0.02).
        fill_first: see `MomentumContrast`.

    Raises:
        ValueError: the encoder does not pool its last map, or ``salience`` is not from 0 to 1.
    """

    #: `skelops.augment.skelemix` finds partners among no fewer.
    least_clips = 3

    def __init__(
        self,
        encoder: Encoder,
        embedding: int = 128,
        queue_size: int = 32768,
        temperature: float = 0.2,
        momentum: float = 0.996,
        salience: float = 0.5,
        heads: int = 8,
        copy_after_init: bool = True,
        released_weights: bool = False,
        fill_first: bool = False,
    ) -> None:
        encoder.check_pools_its_map("SkeAttnCLR")
        if not 0 <= salience <= 1:
            raise ValueError(f"salience: expected 0 to 1, got {salience}")
        features = encoder.feature_dim
        encoder.fc = projector(features, features, embedding, bias=False)
        initialise = released_or_default(released_weights)
        super().__init__(
            encoder, embedding, queue_size, temperature, momentum, copy_after_init, initialise, fill_first=fill_first
        )
        self.salience, self.momentum = salience, momentum
        self.mask = AttentionMask(features, heads)
        self.predictors = nn.ModuleDict(
            {name: projector(embedding, features, embedding, bias=False) for name in ("whole", "salient", "rest")}
        )
        for module in (self.mask, self.predictors):
            if released_weights:
                module.apply(initialise)

    def forward(self, query: Tensor, key: Tensor, generator: Generator | None = None) -> dict[str, Tensor]:
        """Losses of a step on two views (N, C, T, V, M); the generator draws the mix.

        Returns:
            Scalars: ``loss``, its parts ``loss_whole``, ``loss_salient``, ``loss_rest``, and ``accuracy``, the share of
            queries whose key beats every negative.
        """
        layout, stride, bodies = self.encoder_q.layout, self.encoder_q.temporal_stride, query.shape[4]
        # 3 or 4 body parts, 4 to 7 of 16 blocks of frames (released configuration).
        mixed = skelemix(query, layout, generator, parts=(3, 4), share=(4 / 16, 7 / 16), stride=stride).clips
        whole = self.encoder_q(query)
        features = self.encoder_q.feature_map(mixed)
        mask = self.mask(features)
        local = [self.encoder_q.fc(part) for part in self._pool(features, mask, bodies)]
        queries = zip(self.predictors.values(), (whole, *local), strict=True)
        anchors = torch.stack([normalize(predictor(part), dim=1) for predictor, part in queries])

        with torch.no_grad():
            momentum = 1 - (1 - self.momentum) * (math.cos(math.pi * self.progress) + 1) / 2
            self.encoder_k.update(self.encoder_q, momentum, buffers=True)
            encoder: Any = self.encoder_k.encoder
            features = encoder.feature_map(key)
            mean = skelops.squeeze_pool(features, bodies=bodies).mean
            parts = mean, *self._pool(features, mask, bodies)
            keys = torch.stack([normalize(encoder.fc(part), dim=1) for part in parts])

        losses, accuracy = self.contrast(anchors, keys, anchors[1:].flip(0).detach())
        self.queue.enqueue_(keys[0])
        whole_loss, salient, rest = losses
        loss = whole_loss + self.salience * salient + (1 - self.salience) * rest
        return {
            "loss": self.once_filled(loss, len(query)),
            "loss_whole": whole_loss.detach(),
            "loss_salient": salient.detach(),
            "loss_rest": rest.detach(),
            "accuracy": accuracy,
        }

    @staticmethod
    def _pool(features: Tensor, mask: Tensor, bodies: int) -> list[Tensor]:
        """Salient and other features (N, C), whose sum is the plain mean."""
        parts = skelops.mask_pool(features, mask.to(features.dtype), divide_by="size")
        return [part.unflatten(0, (-1, bodies)).mean(1) for part in parts]
