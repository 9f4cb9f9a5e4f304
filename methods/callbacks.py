"""What happens beside training: the kNN monitor and the report of an epoch."""

from __future__ import annotations

import time

import lightning.pytorch as pl
from skelops.methods.data_module import SkeletonData
from skelops.methods.evaluation import extract_features, knn_predict
from skelops.methods.training import Pretraining


class KNNMonitor(pl.Callback):
    """Logs the accuracy of k nearest neighbours on the test split as ``knn``; draws no random number.

    Args:
        every: epochs between two measurements; 0 switches the monitor off. The last epoch is always measured.
        neighbours: k.
    """

    def __init__(self, every: int = 5, neighbours: int = 20) -> None:
        self.every, self.neighbours = every, neighbours

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if not self.every or (epoch % self.every and epoch != trainer.max_epochs):
            return
        assert isinstance(pl_module, Pretraining)
        data: SkeletonData = trainer.datamodule  # type: ignore[attr-defined]
        train, test = data.split("train"), data.split("test")
        features, queries = (extract_features(pl_module.framework.encoder_q, split.clips) for split in (train, test))
        k = min(self.neighbours, len(train))
        predicted = knn_predict(features, train.labels.to(features.device), queries, train.num_classes, [k])[k]
        pl_module.log("knn", (predicted.cpu() == test.labels).float().mean())


class EpochLines(pl.Callback):
    """One line per epoch, for where no terminal shows a progress bar."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        names = [name for name in ("loss_epoch", "accuracy_epoch", "knn") if name in metrics]
        shown = "  ".join(f"{name.removesuffix('_epoch')} {float(metrics[name]):.3f}" for name in names)
        seconds = time.perf_counter() - self.start
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}  {seconds:.1f} s", flush=True)
