"""What MoCo-style frameworks share: a query encoder, a key encoder that follows it, and a queue of keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from skelops.methods.encoders import Encoder
from skelops.methods.framework import Framework
from torch import Tensor, nn
from torch.nn.functional import normalize

import skelops
from skelops._checks import positive
from skelops.nn import MomentumEncoder, MomentumQueue


def default_init(module: nn.Module) -> None:
    """PyTorch's default initialisation drawn anew, to be passed to `nn.Module.apply`."""
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()


def released_init(module: nn.Module) -> None:
    """Initialisation of the released trainers, to be passed to `nn.Module.apply`: weights N(0, 0.02), biases 0, and
    weights of normalisations N(1, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def released_or_default(released_weights: bool) -> Callable[[nn.Module], None]:
    """What draws the first weights: as the released trainers do, or PyTorch's default."""
    return released_init if released_weights else default_init


class MomentumContrast(Framework):
    """Query encoder, key encoder and queues of MoCo (He et al., CVPR 2020), as SkeletonCLR and its heirs use them.

    Args:
        encoder: the query encoder with its projector as ``fc``.
        embedding: width D of the embeddings.
        queue_size: negatives in a queue.
        temperature: of every term.
        momentum: of the key encoder.
        copy_after_init: start the key encoder as a copy of the query encoder. False is the behaviour of some released
            trainers, which draw the weights of both anew after the copy.
        initialise: draws the first weights, given to `nn.Module.apply`; the encoder's own stay where it is the default.
        queues: names of the queues.
        fill_first: until the queues hold keys of clips alone, the loss is 0 and nothing is learned. False is the
            released behaviour: all embeddings of an untrained encoder are near each other and far from the random
            vectors that fill its queues, so that the first steps pull them closer still. On a small set they may not
            come apart again.

    Attributes:
        encoder_q, encoder_k: the query encoder and the key encoder.

    Raises:
        TypeError: ``temperature`` is no number.
        ValueError: ``temperature`` or ``momentum`` is out of range.
    """

    queue: MomentumQueue
    keys_seen: Tensor

    def __init__(
        self,
        encoder: Encoder,
        embedding: int,
        queue_size: int,
        temperature: float,
        momentum: float,
        copy_after_init: bool = True,
        initialise: Callable[[nn.Module], None] = default_init,
        queues: Sequence[str] = ("queue",),
        fill_first: bool = False,
    ) -> None:
        super().__init__()
        positive("temperature", temperature)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number from 0 to 1, got {momentum}")
        self.temperature, self.queue_size, self.fill_first = temperature, queue_size, fill_first
        if fill_first:
            self.register_buffer("keys_seen", torch.zeros((), dtype=torch.int64))
        if initialise is not default_init:
            encoder.apply(initialise)
        self.encoder_q = encoder
        self.encoder_k = MomentumEncoder(encoder, momentum)
        if not copy_after_init:
            self.encoder_k.apply(initialise)
        for name in queues:
            self.add_module(name, MomentumQueue(embedding, queue_size))

    def keys(self, clips: Tensor) -> tuple[Tensor, ...]:
        """Unit keys (N, D) of a view, of each projector, without gradient; the key encoder takes its step before."""
        self.encoder_k.update(self.encoder_q)
        keys = self.encoder_k(clips)
        return tuple(normalize(key, dim=1) for key in ([keys] if isinstance(keys, Tensor) else keys))

    def once_filled(self, loss: Tensor, clips: int) -> Tensor:
        """The loss of a step on so many clips, or 0 where it is too early for one (``fill_first``)."""
        if not self.fill_first:
            return loss
        loss = torch.where(self.keys_seen < self.queue_size, 0, loss)
        self.keys_seen += clips
        return loss

    def contrast(self, anchors: Tensor, positives: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """InfoNCE of groups of anchors against the queue, in one pass over it.

        The first group has the queue alone as its negatives; every further group has one negative more per anchor.

        Args:
            anchors: (1 + G, N, D).
            positives: (1 + G, N, D).
            others: the further negatives (G, N, D).

        Returns:
            Losses (1 + G,), means over the anchors, and the share of anchors of the first group whose positive beats
            every negative.
        """
        # In the place of the negative that the first group lacks stands the zero vector, whose logit is 0; the
        # exp(0) = 1 that it adds to the sum of exponentials is taken out again, and so is the one that it adds to the
        # rank of a positive whose logit is below 0.
        others = torch.cat([torch.zeros_like(anchors[:1]), others])
        loss, lse, rank = skelops.info_nce(
            anchors,
            positives,
            self.queue.queue.t(),
            self.temperature,
            extra_negatives=others[..., None, :],
            reduction="none",
        )
        first = loss[:1] + torch.log1p(-torch.exp(-lse[:1]))
        below = (anchors[0].detach() * positives[0]).sum(1) < 0
        return torch.cat([first, loss[1:]]).mean(1), (rank[0] <= below).float().mean()
