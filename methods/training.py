"""Training with PyTorch Lightning: what every framework shares."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from jsonargparse import lazy_instance
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from skelops.methods.framework import Batch, Framework
from torch import Tensor, nn

from skelops.augment import RandomViews, Views

# An instance that the command line can override part by part.
PUBLISHED_VIEWS = lazy_instance(RandomViews)


def lr_factor(step: int, steps: int, warmup: int, decay: list[int] | Literal["cosine"]) -> float:
    """Learning rate at a step over the base rate: linear warm-up, then cosine to zero or x0.1 at the steps given."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
    return 0.1 ** sum(step >= milestone for milestone in decay)


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD as SkeleMixCLR and SkeAttnCLR train with it."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)


def check_one_device(trainer: pl.Trainer) -> None:
    """The queue and the batch statistics of the key encoder are not synchronised between devices.

    Raises:
        ValueError: there are several.
    """
    if trainer.world_size > 1:
        raise ValueError(f"trainer.devices: expected 1, got {trainer.world_size}")


class Training(pl.LightningModule):
    """Trains a framework on random views of every clip.

    Augmentation and mixing draw from a generator of their own on the device of the clips; its state and that of torch's
    global generators are part of the checkpoint. On a device of another kind, whose generators have other states, a run
    resumes with a warning and random numbers of its own.

    Args:
        framework: such as `skelops.methods.SkeleMixCLR` or `skelops.methods.Supervised`.
        views: distribution of the views.
        optimizer: makes the optimizer of the parameters that are trained; the default is the published recipe.
        decay: epochs at which the learning rate is multiplied by 0.1, or "cosine".
        warmup: epochs over which the learning rate rises linearly.

    Raises:
        ValueError: ``decay`` or ``warmup`` is negative.
    """

    def __init__(
        self,
        framework: Framework,
        views: Views = PUBLISHED_VIEWS,
        optimizer: OptimizerCallable = sgd,
        decay: list[int] | Literal["cosine"] = [],  # noqa: B006 - never written to
        warmup: float = 0,
    ) -> None:
        super().__init__()
        if not isinstance(decay, str) and any(epoch < 0 for epoch in decay):
            raise ValueError(f"decay: expected epochs of at least 0, got {decay}")
        if not 0 <= warmup < math.inf:
            raise ValueError(f"warmup: expected a finite number of at least 0, got {warmup}")
        self.framework, self.views = framework, views
        self.optimizer, self.decay, self.warmup = optimizer, decay, warmup
        self.generator: torch.Generator | None = None
        self._random_state: dict[str, Any] | None = None

    def on_fit_start(self) -> None:
        """Refuses several devices, whoever made the trainer."""
        check_one_device(self.trainer)

    def on_train_start(self) -> None:
        """Seeds the generator of the augmentations, or puts all generators back to where the checkpoint had them."""
        self.generator = torch.Generator(self.device).manual_seed(torch.initial_seed() % 2**63)
        if (state := self._random_state) is None:
            return
        # Older checkpoints do not name the device.
        stored = state.get("device", "cuda" if "cuda" in state else "cpu")
        if stored != self.device.type:
            warnings.warn(
                f"the checkpoint comes from {stored}: on {self.device.type} the run does not continue bit for bit, and"
                " its random generators start from seed_everything",
                stacklevel=2,
            )
            return
        self.generator.set_state(state["views"])
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Losses on a batch."""
        return self.framework.step(
            batch, lambda clips: self.views(clips, self.generator, batch.lengths), self.generator
        )

    def training_step(self, batch: tuple[Tensor, Tensor, list[int], Tensor], batch_index: int) -> Tensor:
        clips, labels, indices, lengths = batch
        self.framework.progress = self.trainer.global_step / self.trainer.estimated_stepping_batches
        places = torch.tensor(indices).to(clips.device, non_blocking=True)
        losses = self.step(Batch(clips, labels, places, lengths))
        for name, value in losses.items():
            shown = name in ("loss", "accuracy")
            self.log(name, value.detach(), on_step=True, on_epoch=True, prog_bar=shown, batch_size=len(batch[0]))
        return losses["loss"]

    def on_train_epoch_end(self) -> None:
        """Ends a run that diverged, before its checkpoint is replaced.

        Raises:
            ValueError: the mean loss of the epoch is not finite.
        """
        # There is none where a run resumes behind the last step of an epoch.
        loss = float(self.trainer.callback_metrics.get("loss_epoch", 0.0))
        if not math.isfinite(loss):
            raise ValueError(
                f"loss: expected a finite mean over epoch {self.current_epoch + 1}, got {loss}: training diverged"
            )

    def new_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of what is trained, with the base learning rate."""
        return self.optimizer(parameter for parameter in self.framework.parameters() if parameter.requires_grad)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.new_optimizer()
        self.trainer.fit_loop.setup_data()  # counts the batches
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        steps = int(self.trainer.estimated_stepping_batches)
        decay = self.decay if isinstance(self.decay, str) else [epoch * per_epoch for epoch in self.decay]
        warmup = round(self.warmup * per_epoch)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps, warmup, decay))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what builds the encoder again, the kind of the optimizer, and the states of the random generators."""
        encoder = self.framework.encoder_q
        checkpoint["optimizer"] = type(self.trainer.optimizers[0]).__name__
        checkpoint["encoder"] = {"name": type(encoder).__name__, "arguments": encoder.arguments}
        state: dict[str, Any] = {"device": self.device.type, "cpu": torch.get_rng_state()}
        if self.generator is not None:
            state["views"] = self.generator.get_state()
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint["random_state"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random_state = checkpoint["random_state"]
