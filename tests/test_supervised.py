"""Supervised training: the step, the monitor, and runs of the command."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skelops.methods import STGCN, Supervised
from skelops.methods.framework import Batch
from torch.nn.functional import log_softmax

from skelops.data import nw_ucla


def framework(layout: str = "ntu", classes: int = 7, **arguments: float) -> Supervised:
    return Supervised(STGCN(layout, width=4, feature_dim=12, dropout=0.0), classes, **arguments)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_step_is_the_cross_entropy_of_a_linear_classifier(smoothing: float) -> None:
    model = framework(label_smoothing=smoothing)
    clips, labels = torch.randn(9, 3, 13, 25, 2), torch.randint(7, (9,))
    found = model(clips, labels)
    logits = torch.addmm(model.encoder_q.fc.bias, model.encoder_q.features(clips), model.encoder_q.fc.weight.T)
    scores = log_softmax(logits.double(), 1)
    target = torch.full((9, 7), smoothing / 7, dtype=torch.float64)
    target[torch.arange(9), labels] += 1 - smoothing
    torch.testing.assert_close(found["loss"].double(), -(target * scores).sum(1).mean(), rtol=1e-5, atol=1e-5)
    assert found["accuracy"] == sum(int(row.argmax()) == label for row, label in zip(logits, labels, strict=True)) / 9
    found["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_one_view_and_the_labels_make_a_step() -> None:
    model, labels = framework(), torch.randint(7, (4,))
    views = iter(torch.randn(2, 4, 3, 8, 25, 2))
    batch = Batch(torch.zeros(4, 3, 8, 25, 2), labels, torch.arange(4))
    found = model.step(batch, lambda clips: clips + next(views), None)
    assert len(list(views)) == 1
    assert found.keys() == {"loss", "accuracy"}


def test_the_classifier_starts_as_released() -> None:
    fc = Supervised(STGCN("ntu", width=4, feature_dim=4096), 8).encoder_q.fc
    assert fc.weight.std().item() == pytest.approx(math.sqrt(2 / 8), rel=0.02)


def test_a_few_steps_learn_a_batch() -> None:
    model = framework("nw_ucla", 3)
    clips, labels = torch.randn(12, 3, 16, 20, 1), torch.arange(12) % 3
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        losses = model(clips, labels)
        losses["loss"].backward()
        optimizer.step()
    assert losses["accuracy"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1}, "num_classes: expected at least 2, got 1"),
        ({"label_smoothing": 1.0}, "label_smoothing: .* got 1"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        framework(**arguments)


TINY = """
name: tiny
seed_everything: 3
model:
  framework:
    class_path: skelops.methods.Supervised
    init_args:
      encoder:
        class_path: skelops.methods.STGCN
        init_args: {layout: nw_ucla, width: 4, feature_dim: 16, dropout: 0.5}
      num_classes: 10
  views: {rotation: 60, tilt: 60, scale: 0.5, box: true, frames: 9, crop: 0, shear: 0}
  optimizer:
    class_path: torch.optim.SGD
    init_args: {lr: 0.05, momentum: 0.9, nesterov: true, weight_decay: 0.0001}
data:
  source: nw_ucla
  folder: clips
  frames: 9
  batch_size: 4
  repeats: 2
  whole_clips: true
  options: {recipe: ctr_gcn, cache: cache}
trainer: {max_epochs: 4, log_every_n_steps: 1, accelerator: cpu}
monitor: {every: 0}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration, and a set of short clips in which an action is one way of moving one joint."""
    pytest.importorskip("lightning.pytorch", reason="needs the [train] extra")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "clips").mkdir()
    random = np.random.default_rng(0)
    pose = random.normal(size=(20, 3)) + 5
    for number, action in enumerate(nw_ucla.ACTIONS):
        for view in (1, 2, 3):
            frames = int(random.integers(5, 20))
            joints = np.tile(pose, (frames, 1, 1)) + 0.02 * random.normal(size=(frames, 20, 3))
            joints[:, 2 * number] += 4 * np.sin(np.linspace(0, 6, frames))[:, None]
            content = {"label": number + 1, "skeletons": joints.tolist()}
            (tmp_path / f"clips/a{action:02}_s01_e00_v{view:02}.json").write_text(json.dumps(content))
    return "tiny.yaml"


def rows(folder: Path, column: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def test_the_command_trains_and_reports(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    from skelops.methods.checkpoint import load_encoder, read_checkpoint

    from skelops.cli import main

    assert main(["train", "--config", config]) == 0
    output, folder = capsys.readouterr().out, Path("runs/tiny/version_0")
    assert "top1" in output
    assert "s per epoch" in output
    top1, best = rows(folder, "top1"), rows(folder, "best")
    assert len(top1) == len(rows(folder, "top5")) == len(rows(folder, "seconds")) == 4
    assert best == [max(top1[: i + 1]) for i in range(4)]
    assert all(five >= one for five, one in zip(rows(folder, "top5"), top1, strict=True))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["top1"] == pytest.approx(top1[-1])
    assert summary["best"] == pytest.approx(best[-1])
    assert summary["epochs"] == 4
    assert top1[summary["best_epoch"] - 1] == pytest.approx(best[-1])
    # The accuracy of the checkpoint is the one reported.
    checkpoint = read_checkpoint(folder / "checkpoints/last.ckpt")
    encoder, prefix = load_encoder(checkpoint), "framework.encoder_q.fc."
    weight, bias = (checkpoint["state_dict"][prefix + name] for name in ("weight", "bias"))
    test = nw_ucla.load("clips", "test", frames=9, recipe="ctr_gcn")
    predicted = (encoder.features(test.clips) @ weight.T + bias).argmax(1)
    assert (predicted == test.labels).float().mean().item() == pytest.approx(top1[-1])
    assert main(["eval", "--checkpoint", str(folder / "checkpoints/last.ckpt"), "--neighbours", "[1]"]) == 0


def test_an_epoch_shows_every_clip_so_often_and_whole(config: str) -> None:
    from skelops.methods.commands.train import build

    data = build(["--config", config]).datamodule
    batches = list(data.train_dataloader())
    assert len(batches) == 20 * 2 // 4
    longest = int(data.training_clips().lengths.max())
    for clips, labels, indices, lengths in batches:
        assert clips.shape == (4, 3, longest, 20, 1)
        assert torch.equal(lengths, data.training_clips().lengths[indices])
        assert torch.equal(labels, data.split("train").labels[indices])
    assert sorted(index for batch in batches for index in batch[2]) == sorted([*range(20), *range(20)])
    assert data.split("train").clips.shape == (20, 3, 9, 20, 1)


def test_a_resumed_run_knows_the_best_epoch_and_ends_alike(config: str) -> None:
    from skelops.methods.callbacks import AccuracyMonitor
    from skelops.methods.commands.train import build
    from test_training import StopAfter

    def train(*arguments: str, stop_after: int | None = None) -> tuple[AccuracyMonitor, Path]:
        cli = build(["--config", config, *arguments])
        if stop_after:
            cli.trainer.callbacks.insert(0, StopAfter(stop_after))
        cli.fit()
        return cli.monitor, cli.folder

    whole, straight = train("--name", "straight")
    _, first = train("--name", "parts", stop_after=2)
    resumed, second = train("--name", "parts", "--ckpt_path", "last")
    assert (resumed.best, resumed.best_epoch) == (whole.best, whole.best_epoch)
    assert rows(first, "loss_step") + rows(second, "loss_step") == rows(straight, "loss_step")
    assert rows(first, "top1") + rows(second, "top1") == rows(straight, "top1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.framework.num_classes", "9"], "model.framework.num_classes: expected 10, got 9"),
        (["--model.framework.encoder.layout", "ntu"], "expected an encoder of layout nw_ucla, got ntu"),
        (["--model.views.frames", "0"], "model.views.frames: expected the frames to draw of data.whole_clips, got 0"),
        (["--data.source", "synthetic", "--data.options", "{}"], "data.whole_clips: expected false for synthetic"),
    ],
)
def test_mistakes_are_told_before_training(config: str, arguments: list[str], message: str) -> None:
    from skelops.methods.commands.train import build

    from skelops.cli import CommandError

    with pytest.raises(CommandError, match=message):
        build(["--config", config, *arguments])
