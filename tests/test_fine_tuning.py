"""Fine-tuning: shares of labels, the encoder of a checkpoint, streams, frozen statistics, transfer."""

from __future__ import annotations

from functools import wraps
from pathlib import Path

import pytest
import torch

import skelops
from skelops.data.transforms import motion_stream

pytest.importorskip("lightning.pytorch", reason="needs the [train] extra")

from skelops.methods import FineTuned
from skelops.methods.checkpoint import load_encoder, read_checkpoint
from skelops.methods.commands import eval as eval_command
from skelops.methods.commands.train import TrainCLI, build
from skelops.methods.data_module import SkeletonData, labelled_subset

from skelops.cli import CommandError

STGCN = "{class_path: skelops.methods.STGCN, init_args: {layout: ntu, width: 4, feature_dim: 16}}"
SCD = (
    "{class_path: skelops.methods.encoders.SCDEncoder,"
    " init_args: {layout: ntu, bodies: 2, frames: 8, width: 4, hidden_dim: 16, heads: 2}}"
)
PRETRAINING = """
name: pretraining
model:
  framework:
    class_path: skelops.methods.FRAMEWORK
    init_args: {encoder: ENCODER, ARGUMENTS}
  views: {crop: 0, shear: 0.1}
data: {source: synthetic, frames: 8, batch_size: 12, options: {clips_per_class: 4}}
trainer: {max_epochs: 1, accelerator: cpu}
monitor: {every: 0}
"""
METHODS = {
    "SkeleMixCLR": (STGCN, "embedding: 8, queue_size: 40"),
    "SDSCL": (STGCN, "heads: 2"),
    "SCDNet": (SCD, "embedding: 8, queue_size: 40"),
    "STDCL": (STGCN, "num_classes: 15, clips: 60, frames: 2, embedding: 8"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fine_tuning")


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def checkpoints(folder: Path) -> dict[str, Path]:
    """One short pretraining per method."""
    found = {}
    for method, (encoder, arguments) in METHODS.items():
        text = PRETRAINING.replace("FRAMEWORK", method).replace("ENCODER", encoder).replace("ARGUMENTS", arguments)
        (folder / "pretraining.yaml").write_text(text)
        found[method] = build(["--config", str(folder / "pretraining.yaml"), "--runs", str(folder / "runs")]).fit()
    return found


def tune(checkpoint: Path, **keys: object) -> TrainCLI:
    """``skelops train --config fine_tune/synthetic`` with few and short clips."""
    settings = {
        "model.framework.init_args.pretrained": checkpoint,
        "data.frames": 8,
        "data.batch_size": 12,
        "data.options": "{clips_per_class: 4}",
        "trainer.max_epochs": 1,
        **keys,
    }
    return build(["--config", "fine_tune/synthetic", *(f"--{key}={value}" for key, value in settings.items())])


@pytest.mark.parametrize("share", [0.05, 0.15, 0.4, 1.0])
def test_a_share_of_every_class(share: float) -> None:
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([3, 50, 101, 20]))[torch.randperm(174)]
    chosen = labelled_subset(labels, share, seed=2)
    assert torch.equal(chosen, chosen.unique())
    counts = torch.bincount(labels[chosen], minlength=4)
    assert counts.tolist() == [max(1, round(share * count)) for count in (3, 50, 101, 20)]
    assert torch.equal(chosen, labelled_subset(labels, share, seed=2))
    assert share == 1 or not torch.equal(chosen, labelled_subset(labels, share, seed=3))


@pytest.mark.parametrize("share", [0, -0.1, 1.5])
def test_a_share_is_checked(share: float) -> None:
    with pytest.raises(ValueError, match="labelled: expected a share above 0 and at most 1"):
        labelled_subset(torch.arange(4), share)


def test_training_gets_the_share_and_evaluation_all() -> None:
    data = SkeletonData(frames=8, batch_size=15, labelled=0.25, options={"clips_per_class": 8})
    clips = data.training_clips()
    assert torch.bincount(clips.labels).tolist() == [2] * 15
    assert len(data.split("train")) == 120 and len(data.split("test")) == 120
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch[0], clips.clips[batch[2]])


@pytest.mark.parametrize("method", METHODS)
def test_one_command_fine_tunes_the_encoder_of_every_method(method: str, checkpoints: dict[str, Path]) -> None:
    cli = tune(checkpoints[method], **{"data.labelled": 0.5})
    pretrained = load_encoder(read_checkpoint(checkpoints[method])).state_dict()
    weights = cli.model.framework.encoder_q.state_dict()
    assert weights.keys() - pretrained.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(weights[name], weight) for name, weight in pretrained.items())
    assert all(module.training for module in cli.model.modules())
    cli.fit()
    assert len(cli.datamodule.training_clips()) == 30
    assert cli.trainer.global_step == 60 // 12
    assert not torch.equal(weights["fc.weight"], torch.zeros_like(weights["fc.weight"]))
    assert all(parameter.grad is not None for parameter in cli.model.parameters())
    assert 0 <= cli.accuracy()["top1"] <= 1


def test_from_scratch_takes_the_hyper_parameters_alone(checkpoints: dict[str, Path]) -> None:
    flag = {"model.framework.init_args.from_scratch": "true"}
    encoder = tune(checkpoints["SkeleMixCLR"], **flag).model.framework.encoder_q
    pretrained = load_encoder(read_checkpoint(checkpoints["SkeleMixCLR"]))
    assert encoder.arguments == pretrained.arguments
    assert not torch.equal(encoder.st_gcn_networks[0].gcn.conv.weight, pretrained.st_gcn_networks[0].gcn.conv.weight)
    again = tune(checkpoints["SkeleMixCLR"], **flag).model.framework.encoder_q
    other = tune(checkpoints["SkeleMixCLR"], **flag, seed_everything=1).model.framework.encoder_q
    assert torch.equal(encoder.fc.weight, again.fc.weight)
    assert not torch.equal(encoder.fc.weight, other.fc.weight)


def test_both_streams_share_encoder_and_classifier(checkpoints: dict[str, Path]) -> None:
    cli = tune(checkpoints["SDSCL"], **{"model.framework.init_args.streams": "both"})
    cli.fit()
    framework, clips = cli.model.framework.eval(), cli.datamodule.split("test").clips
    with torch.no_grad():
        expected = framework.encoder_q(clips) + framework.encoder_q(motion_stream(clips))
        assert torch.allclose(framework.logits(framework.streams(clips)), expected, atol=1e-5)
        top1 = (expected.argmax(1) == cli.datamodule.split("test").labels).float().mean()
    assert cli.accuracy()["top1"] == pytest.approx(float(top1), abs=2 / len(clips))


def test_views_move_both_streams_alike() -> None:
    framework = FineTuned.__new__(FineTuned)
    framework.with_motion = True
    clips, lengths = torch.randn(2, 3, 6, 25, 2), torch.tensor([4, 6])
    streams = framework.streams(clips, lengths)
    assert torch.equal(streams[..., :2], clips)
    assert torch.equal(streams[..., 2:], motion_stream(clips, lengths))
    assert not streams[0, :, 3:, :, 2:].any()


def test_transfer_to_other_classes(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another set of the same joints, here the synthetic one cut to its first nine classes."""
    load = skelops.data.synthetic.load

    @wraps(load)
    def nine(**arguments: object) -> skelops.data.SkeletonDataset:
        whole = load(**arguments)
        chosen = whole.labels < 9
        return skelops.data.SkeletonDataset(whole.clips[chosen], whole.labels[chosen], "ntu", whole.class_names[:9])

    monkeypatch.setattr("skelops.data.synthetic.load", nine)
    cli = tune(checkpoints["SkeleMixCLR"], **{"model.framework.init_args.num_classes": 9, "data.labelled": 0.25})
    checkpoint = cli.fit()
    assert cli.model.framework.encoder_q.fc.out_features == 9
    assert cli.accuracy()["best"] >= 0
    eval_command.main(["--checkpoint", str(checkpoint), "--neighbours", "[1]"])
    with pytest.raises(CommandError, match="model.framework.num_classes: expected 9, got 15"):
        tune(checkpoints["SkeleMixCLR"])


def test_frozen_statistics_stay(checkpoints: dict[str, Path]) -> None:
    cli = tune(checkpoints["SkeleMixCLR"], **{"model.framework.init_args.frozen_statistics": "true"})
    encoder = cli.model.framework.encoder_q
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    weight = encoder.fc.weight.detach().clone()
    cli.fit()
    for name, buffer in encoder.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert not torch.equal(encoder.fc.weight, weight)
    clips, labels = torch.randn(6, 3, 8, 25, 2), torch.arange(6)
    framework = cli.model.framework.train()
    assert torch.equal(*(framework(clips, labels)["loss"] for _ in range(2)))  # dropout drops nothing


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pretrained": "no.ckpt"}, "checkpoint: expected a file, found none at no.ckpt"),
        ({"pretrained": "pretraining.yaml"}, r"pretraining.yaml cannot be read \(it is no checkpoint\)$"),
        ({"streams": "motion"}, "streams"),
        ({"frozen_statistics": "true", "from_scratch": "true"}, "frozen_statistics: expected false with from_scratch"),
        ({"num_classes": 1}, "num_classes: expected at least 2, got 1"),
    ],
)
def test_bad_arguments_are_one_line(keys: dict[str, object], message: str, checkpoints: dict[str, Path]) -> None:
    with pytest.raises(CommandError, match=message) as caught:
        tune(checkpoints["SkeleMixCLR"], **{f"model.framework.init_args.{key}": value for key, value in keys.items()})
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_needed() -> None:
    with pytest.raises(CommandError, match="pretrained"):
        build(["--config", "fine_tune/synthetic"])


def test_clips_of_another_layout_are_refused(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    clips = skelops.data.SkeletonDataset(
        torch.zeros(15, 3, 8, 20, 1), torch.arange(15), "nw_ucla", tuple(f"class {i}" for i in range(15))
    )
    monkeypatch.setattr("skelops.data.synthetic.load", wraps(skelops.data.synthetic.load)(lambda **arguments: clips))
    with pytest.raises(CommandError, match="expected an encoder of layout nw_ucla, got ntu"):
        tune(checkpoints["SkeleMixCLR"])
