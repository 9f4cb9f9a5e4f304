"""Training with Lightning: resuming, data order, schedules, runs on disk."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from framework_cases import FRAMEWORKS, configuration

pl = pytest.importorskip("lightning.pytorch", reason="needs the [train] extra")

from skelops.methods.callbacks import EpochLines, KNNMonitor  # noqa: E402
from skelops.methods.checkpoint import load_encoder, read_checkpoint  # noqa: E402
from skelops.methods.commands.train import TrainCLI, build, last_checkpoint  # noqa: E402
from skelops.methods.data_module import ShuffledBatches  # noqa: E402
from skelops.methods.training import lr_factor  # noqa: E402

from skelops.cli import CommandError  # noqa: E402

TINY = """
name: tiny
seed_everything: 3
model:
  framework:
    class_path: skelops.methods.SkeleMixCLR
    init_args:
      encoder:
        class_path: skelops.methods.STGCN
        init_args: {layout: ntu, width: 4, feature_dim: 16, dropout: 0.5}
      embedding: 8
      queue_size: 40
      momentum: 0.9
  views: {rotation: 30}
  optimizer:
    class_path: torch.optim.AdamW
    init_args: {lr: 0.01}
  decay: cosine
  warmup: 1
data: {source: synthetic, frames: 8, batch_size: 12, options: {clips_per_class: 2}}
trainer: {max_epochs: 4, log_every_n_steps: 1, accelerator: cpu}
monitor: {every: 1, neighbours: 3}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return "tiny.yaml"


class StopAfter(pl.Callback):
    """Ends training early, as an interruption would: the schedule still aims at all epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


def train(config: str, *arguments: str, stop_after: int | None = None) -> TrainCLI:
    cli = build(["--config", config, *arguments])
    if stop_after:
        cli.trainer.callbacks.insert(0, StopAfter(stop_after))
    cli.fit()
    return cli


def losses(folder: Path) -> list[tuple[int, float]]:
    with (folder / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row["loss_step"])) for row in csv.DictReader(file) if row["loss_step"]]


def assert_identical(one: Any, other: Any, where: str = "checkpoint") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_identical(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_identical(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_resumed_run_continues_bit_for_bit(config: str, name: str) -> None:
    """Weights, queues, banks, optimizer, schedule and random generators after two epochs, the second of which is that
    of another process or not."""
    content = yaml.safe_load(TINY)
    content["model"]["framework"] = configuration(name, dropout=0.5, clips=30, classes=15)
    Path(config).write_text(yaml.safe_dump(content))
    run = (config, "--trainer.max_epochs", "2", "--monitor.every", "0")
    straight = train(*run, "--name", "straight")
    first = train(*run, "--name", "parts", stop_after=1)
    assert read_checkpoint(first.folder / "checkpoints/last.ckpt")["epoch"] == 0
    second = train(*run, "--name", "parts", "--ckpt_path", "last")
    assert second.folder.name == "version_1"
    ends = [read_checkpoint(cli.folder / "checkpoints/last.ckpt") for cli in (straight, second)]
    assert ends[0]["epoch"] == ends[1]["epoch"] == 1
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "random_state", "global_step"):
        assert_identical(ends[0][part], ends[1][part], part)
    state = ends[0]["state_dict"]
    if "framework.queue.queue_ptr" in state:
        assert int(state["framework.queue.queue_ptr"]) == 2 * 2 * 12 % 40
    assert losses(straight.folder) == losses(first.folder) + losses(second.folder)


def test_a_run_without_the_random_state_would_differ(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without the generators the second half is another one."""
    straight = train(config, "--name", "straight")
    train(config, "--name", "parts", stop_after=2)
    monkeypatch.setattr("skelops.methods.training.Training.on_load_checkpoint", lambda *args: None)
    second = train(config, "--name", "parts", "--ckpt_path", "last")
    assert losses(straight.folder)[-1] != losses(second.folder)[-1]


@pytest.fixture
def trained(config: str) -> Path:
    """The checkpoint after one epoch."""
    return train(config, stop_after=1).folder / "checkpoints/last.ckpt"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.optimizer.lr", "0.5"], "expected lr 0.01 as in .*last.ckpt, got 0.5"),
        (["--model.optimizer.weight_decay", "0.3"], "expected weight_decay 0.01 as in .*last.ckpt, got 0.3"),
        (["--model.optimizer", "torch.optim.Adamax"], "expected AdamW as in .*last.ckpt, got Adamax"),
    ],
)
def test_a_run_resumes_with_its_optimizer_alone(config: str, trained: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=f"model.optimizer: {message}"):
        build(["--config", config, "--ckpt_path", "last", *arguments])
    assert [folder.name for folder in Path("runs/tiny").iterdir()] == ["version_0"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optimizer", "model.optimizer: expected betas .* as in .*, got none"),  # older checkpoints do not name it
        ("optimizer_states", "holds no state of an optimizer"),
    ],
)
def test_a_checkpoint_without_the_optimizer(config: str, trained: Path, key: str, message: str) -> None:
    content = torch.load(trained, weights_only=True)
    del content[key]
    torch.save(content, trained)
    with pytest.raises(CommandError, match=message):
        build(["--config", config, "--ckpt_path", "last", "--model.optimizer=SGD", "--model.optimizer.lr=0.01"])


def test_a_run_that_diverges_ends(config: str) -> None:
    cli = build(["--config", config, "--model.optimizer.lr", "1e30", "--model.warmup", "0"])
    with pytest.raises(CommandError, match="^loss: expected a finite mean over epoch 1, got (nan|inf): training diver"):
        cli.fit()
    assert not (cli.folder / "checkpoints").exists()


def test_a_seed_fixes_a_run_and_another_changes_it(config: str) -> None:
    runs = [losses(train(config, "--seed_everything", seed, "--trainer.max_epochs", "1").folder) for seed in "334"]
    assert runs[0] == runs[1] != runs[2]


def test_the_monitor_does_not_change_training(config: str) -> None:
    watched = train(config, "--trainer.max_epochs", "2")
    alone = train(config, "--trainer.max_epochs", "2", "--monitor.every", "0")
    assert losses(watched.folder) == losses(alone.folder)
    assert "knn" in watched.trainer.callback_metrics
    assert "knn" not in alone.trainer.callback_metrics


def test_runs_are_never_overwritten(config: str) -> None:
    folders = [train(config, "--trainer.max_epochs", "1").folder for _ in range(2)]
    assert [folder.as_posix() for folder in folders] == ["runs/tiny/version_0", "runs/tiny/version_1"]
    for folder in folders:
        assert {"metrics.csv", "config.yaml", "checkpoints"} <= {path.name for path in folder.iterdir()}
        assert list(folder.glob("events.out.tfevents.*"))
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]


def test_training_is_quiet(config: str, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        train(config, "--trainer.max_epochs", "2")
    output = capfd.readouterr()
    assert [line.split("  ")[0] for line in output.out.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert output.err == ""
    assert [str(w.message) for w in caught if "skelops" not in str(w.message)] == []


def test_any_key_can_be_set_on_the_command_line(config: str) -> None:
    keys = {
        "model.framework.temperature": "0.5",
        "model.framework.encoder.width": "8",
        "model.optimizer.lr": "0.5",
        "model.views.shear": "0.1",
        "data.batch_size": "6",
    }
    cli = build(["--config", config, *(f"--{key}={value}" for key, value in keys.items())])
    assert cli.model.framework.temperature == 0.5
    assert cli.model.framework.encoder_q.arguments["width"] == 8
    assert cli.model.optimizer([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.5
    assert cli.datamodule.train_dataloader().sampler.batch_size == 6
    assert cli.model.views.shear == 0.1


def test_a_checkpoint_gives_the_encoder_back(config: str) -> None:
    cli = train(config, "--trainer.max_epochs", "1")
    encoder = load_encoder(read_checkpoint(cli.folder / "checkpoints/last.ckpt"))
    clips = torch.randn(2, 3, 8, 25, 2)
    assert torch.equal(encoder.features(clips), cli.model.framework.encoder_q.eval().features(clips))


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    def epochs(seed: int) -> list[list[list[int]]]:
        batches = ShuffledBatches(10, 3, seed)
        found = []
        for epoch in (0, 1, 0):
            batches.set_epoch(epoch)
            found.append(list(batches))
        return found

    first, second, again = epochs(0)
    assert first == again != second
    assert epochs(0)[0] == first != epochs(1)[0]
    assert [len(batch) for batch in first] == [3, 3, 3]
    assert len({index for batch in first for index in batch}) == 9


def test_repeated_clips_come_so_often() -> None:
    batches = list(ShuffledBatches(10, 4, 0, epoch_clips=30))
    assert len(batches) == len(ShuffledBatches(10, 4, 0, epoch_clips=30)) == 7
    drawn = [index for batch in batches for index in batch]
    assert max(drawn.count(index) for index in range(10)) <= 3
    assert len(drawn) == 28


def test_few_clips_fill_an_epoch_without_favour() -> None:
    batches = ShuffledBatches(3, 8, 0, epoch_clips=16)
    counts = torch.zeros(3, dtype=torch.int64)
    for epoch in range(300):
        batches.set_epoch(epoch)
        drawn = torch.tensor(list(batches))
        assert drawn.shape == (2, 8)
        counts += torch.bincount(drawn.flatten(), minlength=3)
        assert torch.bincount(drawn.flatten()).max() <= 6
    assert (counts - 1600).abs().max() < 80  # four standard deviations


@pytest.mark.parametrize("size", [0, 11])
def test_batch_size_is_checked(size: int) -> None:
    with pytest.raises(ValueError, match=f"^batch_size: expected 1 to 10, .* got {size}"):
        ShuffledBatches(10, size, 0)


def test_learning_rate_schedules() -> None:
    cosine = [lr_factor(step, 12, 2, "cosine") for step in range(13)]
    assert cosine[:2] == pytest.approx([1 / 3, 2 / 3])
    assert cosine[2] == 1
    assert cosine[7] == pytest.approx(0.5)
    assert cosine[12] == pytest.approx(0, abs=1e-12)
    steps = [lr_factor(step, 12, 0, [4, 8]) for step in range(12)]
    assert steps == pytest.approx([1.0] * 4 + [0.1] * 4 + [0.01] * 4)
    assert {lr_factor(step, 12, 0, []) for step in range(12)} == {1.0}
    assert math.isclose(lr_factor(50, 12, 2, "cosine"), 0, abs_tol=1e-12)


@pytest.mark.parametrize(("limit", "accumulated"), [(-1, 1), (3, 1), (-1, 2)])
def test_epochs_of_the_schedule_are_those_of_the_data(config: str, limit: int, accumulated: int) -> None:
    """Two batches an epoch, whatever ends the run."""
    keys = {"model.decay": "[2]", "trainer.max_steps": limit, "trainer.accumulate_grad_batches": accumulated}
    cli = build(["--config", config, *(f"--{key}={value}" for key, value in keys.items())])
    rates = []

    class Record(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"] / 0.01)

    cli.trainer.callbacks.append(Record())
    cli.fit()
    every = {1: [1 / 3, 2 / 3, 1, 1, 0.1, 0.1, 0.1, 0.1], 2: [1 / 2, 1, 0.1, 0.1]}[accumulated]
    assert rates == pytest.approx(every if limit == -1 else every[:limit])


@pytest.mark.parametrize("named", [True, False])
def test_a_run_resumes_on_another_kind_of_device(config: str, named: bool) -> None:
    """States of its generators are of another size; older checkpoints tell the device by having one of CUDA."""
    first = train(config, "--trainer.max_epochs", "2", stop_after=1)
    path = first.folder / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    states = content["random_state"]
    assert states["device"] == "cpu"
    states["views"] = torch.zeros(16, dtype=torch.uint8)
    if named:
        states["device"] = "cuda"
    else:
        del states["device"]
        states["cuda"] = torch.zeros(16, dtype=torch.uint8)
    torch.save(content, path)
    with pytest.warns(UserWarning, match="comes from cuda: on cpu the run does not continue bit for bit"):
        second = train(config, "--trainer.max_epochs", "2", "--ckpt_path", "last")
    assert [step for step, _ in losses(second.folder)] == [2, 3]


def test_last_is_the_newest_numbered_version(config: str) -> None:
    for _ in range(2):
        newest = train(config, "--trainer.max_epochs", "1").folder
    newest.rename(newest.with_name("version_best"))
    (newest.with_name("version_best_10")).symlink_to("version_best")
    assert last_checkpoint(newest.parent) == newest.with_name("version_0") / "checkpoints/last.ckpt"


def test_without_a_logger_the_config_stays_with_the_run(config: str) -> None:
    folder = train(config, "--trainer.max_epochs", "1", "--trainer.logger", "false").folder
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "checkpoints"}
    assert {path.name for path in Path().iterdir()} == {"tiny.yaml", "runs"}


def test_monitor_measures_every_so_many_epochs_and_last(config: str) -> None:
    cli = train(config, "--trainer.max_epochs", "3", "--monitor.every", "2")
    with (cli.folder / "metrics.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file) if row["knn"]] == [1, 2]
    assert KNNMonitor().every == 5


def test_an_epoch_that_resumes_in_its_middle_is_timed() -> None:
    clock = EpochLines()
    clock.on_train_start(None, None)  # no epoch starts
    assert clock.elapsed() >= 0
