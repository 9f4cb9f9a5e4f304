"""SkeletonCLR: MoCo on skeletons, the baseline of Li et al., CrosSCLR (CVPR 2021).

"Released" is github.com/LinguoLi/CrosSCLR at 792b70c, net/skeletonclr.py.
"""

from __future__ import annotations

from skelops.methods.encoders import Encoder
from skelops.methods.momentum_contrast import MomentumContrast, released_or_default
from torch import Generator, Tensor, nn

import skelops
from skelops.nn import Linear


class SkeletonCLR(MomentumContrast):
    """SkeletonCLR: a query q against its key k, with the queue as negatives::

        L = -log( exp(q . k / tau) / (exp(q . k / tau) + sum_j exp(q . Q_j / tau)) )

    Args:
        encoder: the query encoder, without projector.
        embedding: width D of the embeddings.
        queue_size: negatives in the queue.
        temperature: tau.
        momentum: of the key encoder.
        copy_after_init: see `MomentumContrast`.
        released_weights: draw the first weights as the released trainer does, from N(0, 0.02), which learns more slowly
            in short runs than PyTorch's default.
        fill_first: see `MomentumContrast`.
    """

    def __init__(
        self,
        encoder: Encoder,
        embedding: int = 128,
        queue_size: int = 32768,
        temperature: float = 0.07,
        momentum: float = 0.999,
        copy_after_init: bool = True,
        released_weights: bool = False,
        fill_first: bool = False,
    ) -> None:
        features = encoder.feature_dim
        # Without the batch normalisation of SkeleMixCLR's projector (released: mlp=True).
        encoder.fc = nn.Sequential(Linear(features, features), nn.ReLU(), Linear(features, embedding))
        initialise = released_or_default(released_weights)
        super().__init__(
            encoder, embedding, queue_size, temperature, momentum, copy_after_init, initialise, fill_first=fill_first
        )

    def forward(self, query: Tensor, key: Tensor, generator: Generator | None = None) -> dict[str, Tensor]:
        """``loss`` of two views (N, C, T, V, M), and ``accuracy``, the share of queries whose key is first."""
        q, (k,) = self.encoder_q(query), self.keys(key)
        result = skelops.info_nce(q, k, self.queue.queue.t(), self.temperature)
        self.queue.enqueue_(k)
        return {"loss": self.once_filled(result.loss, len(query)), "accuracy": (result.rank == 0).float().mean()}
