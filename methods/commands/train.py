"""``skelops train``: Lightning's CLI on a YAML configuration."""

from __future__ import annotations

import argparse
import logging
import re
import statistics
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from skelops.methods.callbacks import AccuracyMonitor, EpochLines, KNNMonitor
from skelops.methods.checkpoint import check_optimizer, check_weights, read_checkpoint
from skelops.methods.commands.configs import resolved
from skelops.methods.data_module import SkeletonData
from skelops.methods.evaluation import extract_features, in_batches
from skelops.methods.report import claim_folder, write_summary
from skelops.methods.std_cl import STDCL
from skelops.methods.supervised import Supervised
from skelops.methods.training import Training, check_one_device

from skelops.cli import CommandError, user_errors


def quiet() -> None:
    """Silences what Lightning says of itself: advertisements, hardware it does not use, advice that does not apply."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are gathered from one tensor
        ".*Experiment logs directory .* exists and is not empty.*",  # the TensorBoard log lies in the same folder
        ".*args parameter is intended to run from within Python.*",
        ".*smaller than the logging interval.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*GPU available but not used.*",
        ".*in eval mode at the start of training.*",  # frozen statistics
        "The dirpath has changed.*",  # a resumed run writes to a folder of its own
    ):
        warnings.filterwarnings("ignore", message=message)


def last_checkpoint(runs: Path) -> Path:
    """The checkpoint of the newest version of a run.

    Raises:
        ValueError: no version has one.
    """
    numbers = {}
    for file in runs.glob("version_*/checkpoints/last.ckpt"):
        # Whoever keeps a run under a name such as version_best means it to be left alone.
        if match := re.fullmatch(r"version_(\d+)", file.parts[-3]):
            numbers[int(match[1])] = file
    if not numbers:
        raise ValueError(f"--ckpt_path last: expected a checkpoint in {runs}/version_*/checkpoints, found none")
    return numbers[max(numbers)]


def check_trainer(settings: dict[str, Any]) -> None:
    """Sees on a trainer that writes nothing whether the settings of ``trainer`` fit together and ask for one device.

    Raises:
        ValueError: they do not.
    """
    epochs, steps = settings["max_epochs"], settings["max_steps"]
    if epochs is not None and epochs < 1:
        raise ValueError(f"trainer.max_epochs: expected at least 1, got {epochs}")
    if steps == 0:
        raise ValueError("trainer.max_steps: expected at least 1, or -1 for no limit, got 0")
    try:
        trainer = pl.Trainer(**{**settings, "logger": False, "callbacks": None, "enable_checkpointing": False})
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    check_one_device(trainer)


class TrainCLI(LightningCLI):
    """Parses the configuration and builds trainer, model and data; logs and checkpoints go to RUNS/NAME/version_K."""

    def __init__(self, args: ArgsType) -> None:
        super().__init__(
            Training,
            SkeletonData,
            args=args,
            run=False,
            seed_everything_default=0,
            trainer_defaults={"devices": 1, "log_every_n_steps": 10, "enable_model_summary": False},
            parser_kwargs={"prog": "skelops train", "exit_on_error": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="name of the run")
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument(
            "--ckpt_path", type=str, default=None, help='checkpoint to resume from; "last" is the newest of this name'
        )
        parser.add_lightning_class_args(KNNMonitor, "monitor")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        check_trainer(dict(self.config_init.trainer))
        runs = Path(self.config.runs) / self.config.name
        optimizer = self.model.new_optimizer()  # built once more to train: here it refuses bad settings before a folder
        self.checkpoint: Path | None = None
        if self.config.ckpt_path is not None:
            last = self.config.ckpt_path == "last"
            self.checkpoint = last_checkpoint(runs) if last else Path(self.config.ckpt_path)
            content, epochs = read_checkpoint(self.checkpoint), self.config.trainer.max_epochs
            check_weights(self.model, content["state_dict"], content["file"])
            check_optimizer(optimizer, content)
            if epochs is not None and epochs <= content["epoch"] + 1:
                raise ValueError(
                    f"trainer.max_epochs: expected more than the {content['epoch'] + 1} of the checkpoint, got {epochs}"
                )
        self._check_data()
        self.monitor = AccuracyMonitor() if isinstance(self.model.framework, Supervised) else None
        self.folder = claim_folder(lambda number: runs / f"version_{number}")
        where = {"save_dir": runs.parent, "name": runs.name, "version": self.folder.name}
        bar = sys.stdout.isatty() and self.config_init.trainer.enable_progress_bar is not False
        callbacks = [
            *(self.config_init.trainer.callbacks or []),
            *([self.monitor] if self.monitor else []),
            RichProgressBar() if bar else EpochLines(),
            ModelCheckpoint(
                self.folder / "checkpoints", "last", enable_version_counter=False, save_on_train_epoch_end=True
            ),
        ]
        logger = self.config_init.trainer.logger
        if logger is None or logger is True:
            logger = [CSVLogger(**where), TensorBoardLogger(**where)]
        # Where the config is kept without a logger.
        root = self.config_init.trainer.default_root_dir or self.folder
        return super().instantiate_trainer(
            logger=logger, callbacks=callbacks, enable_progress_bar=bar, default_root_dir=root, **kwargs
        )

    def _check_data(self) -> None:
        """Reads the data, and sees whether the model and its views fit them."""
        framework, test = self.model.framework, self.datamodule.split("test")
        train, batch_size = self.datamodule.train_dataloader().dataset, self.datamodule.hparams["batch_size"]
        if batch_size < framework.least_clips:
            raise ValueError(
                f"data.batch_size: expected at least {framework.least_clips} for {type(framework).__name__},"
                f" got {batch_size}"
            )
        self._check_limit(len(self.datamodule.train_dataloader()))
        if framework.encoder_q.layout.name != test.layout:
            raise ValueError(
                f"model.framework: expected an encoder of layout {test.layout}, got {framework.encoder_q.layout.name}"
            )
        if isinstance(framework, Supervised) and framework.num_classes != test.num_classes:
            raise ValueError(f"model.framework.num_classes: expected {test.num_classes}, got {framework.num_classes}")
        if isinstance(framework, STDCL) and framework.clips != len(train):
            raise ValueError(f"model.framework.clips: expected {len(train)}, the training clips, got {framework.clips}")
        if self.datamodule.hparams["whole_clips"] and not self.model.views.frames:
            raise ValueError("model.views.frames: expected the frames to draw of data.whole_clips, got 0")
        view = self.model.views(train.clips[:1], torch.Generator(), train.lengths[:1])
        for clips in (view, test.clips[:1]):
            extract_features(framework.encoder_q, clips)
        if isinstance(framework, STDCL):
            frames = in_batches(framework.encoder_q, framework.encoder_q.feature_map, view).shape[2]
            if framework.frames != frames:
                raise ValueError(
                    f"model.framework.init_args.frames: expected {frames}, those of the last map, got"
                    f" {framework.frames}"
                )

    def _check_limit(self, batches: int) -> None:
        """An epoch of so many batches keeps at least one of them."""
        settings = self.config_init.trainer
        name = "overfit_batches" if settings.overfit_batches else "limit_train_batches"
        limit = settings[name]
        if limit is not None and limit * batches < 1:
            raise ValueError(f"trainer.{name}: expected at least one of the {batches} batches of an epoch, got {limit}")

    def accuracy(self) -> dict[str, Any] | None:
        """After `fit`, of a classifier on the test split: last and best epoch, and the median seconds of an epoch."""
        if self.monitor is None:
            return None
        last = {name: float(self.trainer.callback_metrics[name]) for name in ("top1", "top5")}
        best = {"best": self.monitor.best, "best_epoch": self.monitor.best_epoch}
        seconds = statistics.median(self.monitor.seconds)
        return {"epochs": self.trainer.current_epoch, **last, **best, "seconds_per_epoch": seconds}

    def fit(self) -> Path:
        """Trains; returns the last checkpoint.

        Raises:
            CommandError: the configuration asks for what a step cannot do; one line.
        """
        try:
            with user_errors():
                self.trainer.fit(self.model, self.datamodule, ckpt_path=self.checkpoint)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from stop
        return self.folder / "checkpoints" / "last.ckpt"


def build(arguments: Sequence[str]) -> TrainCLI:
    """Everything up to the first step.

    Raises:
        CommandError: an argument or a file is wrong; one line.
    """
    quiet()
    with user_errors():
        try:
            return TrainCLI(resolved(arguments))
        except argparse.ArgumentError as error:
            raise CommandError(" ".join(str(error).split())) from error


def main(arguments: Sequence[str]) -> None:
    """``skelops train ARGUMENTS``."""
    cli = build(arguments)
    print(f"logs and checkpoints: {cli.folder}", flush=True)
    checkpoint = cli.fit()
    if found := cli.accuracy():
        write_summary(cli.folder / "summary.json", {"command": "skelops train", "name": cli.config.name, **found})
        print(
            f"test clips: top-1 {found['top1']:.1%}, top-5 {found['top5']:.1%};"
            f" best top-1 {found['best']:.1%} (epoch {found['best_epoch']});"
            f" {found['seconds_per_epoch']:.1f} s per epoch"
        )
    print(f"evaluate it with: skelops eval --checkpoint {checkpoint}")
