"""What happens beside training: monitors of accuracy and the report of an epoch."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from skelops.methods.data_module import SkeletonData
from skelops.methods.evaluation import extract_features, in_batches, knn_predict
from skelops.methods.supervised import Supervised
from skelops.methods.training import Training
from torchmetrics.functional.classification import multiclass_accuracy


class KNNMonitor(pl.Callback):
    """Logs the accuracy of k nearest neighbours on the test split as ``knn``; draws no random number.

    Args:
        every: epochs between two measurements; 0 switches the monitor off. The last epoch is always measured.
        neighbours: k.

    Raises:
        ValueError: ``every`` is negative, or ``neighbours`` below 1.
    """

    def __init__(self, every: int = 5, neighbours: int = 20) -> None:
        if every < 0:
            raise ValueError(f"monitor.every: expected at least 0, got {every}")
        if neighbours < 1:
            raise ValueError(f"monitor.neighbours: expected at least 1, got {neighbours}")
        self.every, self.neighbours = every, neighbours

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if not self.every or (epoch % self.every and epoch != trainer.max_epochs):
            return
        assert isinstance(pl_module, Training)
        data: SkeletonData = trainer.datamodule  # type: ignore[attr-defined]
        train, test = data.split("train"), data.split("test")
        features, queries = (extract_features(pl_module.framework.encoder_q, split.clips) for split in (train, test))
        k = min(self.neighbours, len(train))
        predicted = knn_predict(features, train.labels.to(features.device), queries, train.num_classes, [k])[k]
        pl_module.log("knn", (predicted.cpu() == test.labels).float().mean())


class EpochClock(pl.Callback):
    """Measures epochs; of one that a run resumes in the middle, what is left of it."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds since the epoch began."""
        return time.perf_counter() - self.start


class AccuracyMonitor(EpochClock):
    """Logs what the classifier of `skelops.methods.Supervised` scores on the test split after every epoch: ``top1``,
    ``top5``, and ``best``, the highest top1 so far; and ``seconds``, those of training alone. Draws no random number.

    Attributes:
        best: the highest top1.
        best_epoch: its epoch, counted from 1.
        seconds: of every epoch of this process.
    """

    def __init__(self) -> None:
        self.best, self.best_epoch = 0.0, 0
        self.seconds: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Training) and isinstance(pl_module.framework, Supervised)
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.seconds.append(self.elapsed())
        framework, test = pl_module.framework, trainer.datamodule.split("test")  # type: ignore[attr-defined]
        logits = in_batches(framework, lambda clips: framework.logits(framework.streams(clips)), test.clips)
        labels, classes = test.labels.to(logits.device), test.num_classes
        top1, top5 = (
            multiclass_accuracy(logits, labels, classes, average="micro", top_k=min(k, classes)) for k in (1, 5)
        )
        if top1 > self.best:
            self.best, self.best_epoch = float(top1), trainer.current_epoch + 1
        pl_module.log_dict({"top1": top1, "top5": top5, "best": self.best, "seconds": self.seconds[-1]})

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]


class EpochLines(EpochClock):
    """One line per epoch, for where no terminal shows a progress bar."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        names = [name for name in ("loss_epoch", "accuracy_epoch", "knn", "top1", "top5", "best") if name in metrics]
        shown = "  ".join(f"{name.removesuffix('_epoch')} {float(metrics[name]):.3f}" for name in names)
        seconds = self.elapsed()
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}  {seconds:.1f} s", flush=True)
