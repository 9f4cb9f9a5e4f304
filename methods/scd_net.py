"""SCD-Net: Wu et al., Spatiotemporal Clues Disentanglement Network (AAAI 2024, arXiv 2309.05834).

"Released" is github.com/cong-wu/SCD-Net at 0af1b19: scd/scd_encoder.py and scd/builder.py.
"""

from __future__ import annotations

import torch
from skelops.methods.encoders import SCDEncoder
from skelops.methods.momentum_contrast import MomentumContrast, default_init
from torch import Generator, Tensor, nn

import skelops
from skelops.nn import Linear, MomentumQueue
from skelops.ops.info_nce import InfoNCE


def xavier_init(module: nn.Module) -> None:
    """The released initialisation: uniform Xavier for every matrix, to be passed to `nn.Module.apply`. Convolutions
    and adjacencies have more than two axes and stay as they are (`weights_init`)."""
    for parameter in module.parameters(recurse=False):
        if parameter.dim() == 2:
            nn.init.xavier_uniform_(parameter)


class DomainProjectors(nn.Module):
    """Features of time and of space, side by side (N, 2 H), to their embeddings and that of both, each (N, D)."""

    def __init__(self, hidden: int, embedding: int) -> None:
        super().__init__()
        self.time, self.space, self.both = (
            nn.Sequential(Linear(inputs, hidden), nn.ReLU(), Linear(hidden, embedding))
            for inputs in (hidden, hidden, 2 * hidden)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        time, space = features.chunk(2, dim=1)
        return self.time(time), self.space(space), self.both(features)


class SCDNet(MomentumContrast):
    """SCD-Net: contrast across domains. With embeddings q and keys k of time (t), space (s) and both (i), and a queue
    of each, every term is InfoNCE at one temperature::

        L = CE(q_t, k_i, Q_i) + CE(q_s, k_i, Q_i) + CE(q_i, k_t, Q_t) + CE(q_i, k_s, Q_s)

    (Equations 5 and 6 of the paper; released `forward` of scd/builder.py.)

    Args:
        encoder: the two-branch encoder, without projectors.
        embedding: width D of the embeddings.
        queue_size: negatives in each queue.
        temperature: of every term.
        momentum: of the key encoder.
        released_weights: draw the first weights as released, uniform Xavier; False keeps PyTorch's.
        fill_first: see `MomentumContrast`.
    """

    queue_time: MomentumQueue
    queue_space: MomentumQueue
    queue_both: MomentumQueue

    def __init__(
        self,
        encoder: SCDEncoder,
        embedding: int = 128,
        queue_size: int = 8192,
        temperature: float = 0.2,
        momentum: float = 0.999,
        released_weights: bool = True,
        fill_first: bool = False,
    ) -> None:
        if not isinstance(encoder, SCDEncoder):
            raise ValueError(
                f"encoder: expected SCDEncoder, since SCDNet contrasts its features of time and of space, got"
                f" {type(encoder).__name__}, which has one feature"
            )
        encoder.fc = DomainProjectors(encoder.feature_dim // 2, embedding)
        initialise = xavier_init if released_weights else default_init
        super().__init__(
            encoder,
            embedding,
            queue_size,
            temperature,
            momentum,
            initialise=initialise,
            queues=("queue_time", "queue_space", "queue_both"),
            fill_first=fill_first,
        )

    def forward(self, query: Tensor, key: Tensor, generator: Generator | None = None) -> dict[str, Tensor]:
        """Losses of a step on two views (N, C, T, V, M).

        Returns:
            Scalars: ``loss``, its parts ``loss_time`` (t against i), ``loss_space``, ``loss_to_time`` (i against t) and
            ``loss_to_space``, and ``accuracy``, the share of clips whose q_t finds k_i before every negative.
        """
        q_t, q_s, q_i = self.encoder_q(query)
        k_t, k_s, k_i = self.keys(key)
        both = self._contrast(torch.stack([q_t, q_s]), k_i.expand(2, -1, -1), self.queue_both)
        to_time = self._contrast(q_i, k_t, self.queue_time)
        to_space = self._contrast(q_i, k_s, self.queue_space)
        time, space = both.loss.mean(1)
        parts = {
            "time": time,
            "space": space,
            "to_time": to_time.loss.mean(),
            "to_space": to_space.loss.mean(),
        }
        for queue, keys in ((self.queue_time, k_t), (self.queue_space, k_s), (self.queue_both, k_i)):
            queue.enqueue_(keys)
        return {
            "loss": self.once_filled(torch.stack(list(parts.values())).sum(), len(query)),
            **{f"loss_{name}": value.detach() for name, value in parts.items()},
            "accuracy": (both.rank[0] == 0).float().mean(),
        }

    def _contrast(self, query: Tensor, key: Tensor, queue: MomentumQueue) -> InfoNCE:
        return skelops.info_nce(query, key, queue.queue.t(), self.temperature, reduction="none")
