"""What happens beside training: the kNN monitor and the report of an epoch."""

from __future__ import annotations

import time

import lightning.pytorch as pl

from skelops.methods.data_module import SkeletonData
from skelops.methods.evaluation import extract_features, knn_predict


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
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, SkeletonData) and data.train and data.test
        train, test = (extract_features(pl_module.framework.encoder_q, part.clips) for part in (data.train, data.test))
        k = min(self.neighbours, len(train))
        labels = data.train.labels.to(train.device)
        predicted = knn_predict(train, labels, test, data.train.num_classes, [k])[k].cpu()
        pl_module.log("knn", (predicted == data.test.labels).float().mean())


class EpochLines(pl.Callback):
    """One line per epoch, for where no terminal shows a progress bar."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        values = {"loss": metrics.get("loss_epoch"), "accuracy": metrics.get("accuracy_epoch"), "knn": metrics.get("knn")}
        shown = "  ".join(f"{name} {float(value):.3f}" for name, value in values.items() if value is not None)
        seconds = time.perf_counter() - self.start
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}  {seconds:.1f} s", flush=True)
