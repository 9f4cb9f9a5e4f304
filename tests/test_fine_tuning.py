"""Fine-tuning and semi-supervised training: shares of labels, weights of a checkpoint, frozen statistics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from skelops.methods import STGCN, Supervised

pytest.importorskip("lightning.pytorch", reason="needs the [train] extra")

from skelops.methods.commands.train import build
from skelops.methods.data_module import SkeletonData, labelled_subset

ENCODER = "{class_path: skelops.methods.STGCN, init_args: {layout: ntu, width: 4, feature_dim: 16}}"
RUN = f"""
name: NAME
model:
  framework:
    class_path: skelops.methods.FRAMEWORK
    init_args: {{encoder: {ENCODER}, ARGUMENTS}}
data: {{source: synthetic, frames: 8, batch_size: 12, options: {{clips_per_class: 4}}}}
trainer: {{max_epochs: 1, accelerator: cpu}}
monitor: {{every: 0}}
"""


def config(name: str, framework: str, arguments: str) -> str:
    text = RUN.replace("NAME", name).replace("FRAMEWORK", framework).replace("ARGUMENTS", arguments)
    Path(f"{name}.yaml").write_text(text)
    return f"{name}.yaml"


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


def test_a_run_starts_from_the_encoder_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pretraining = build(["--config", config("first", "SkeleMixCLR", "embedding: 8, queue_size: 40")])
    checkpoint = pretraining.fit()
    arguments = f"num_classes: 15, pretrained: {checkpoint}"
    tuning = build(["--config", config("second", "Supervised", arguments), "--data.labelled", "0.5"])
    weights, start = pretraining.model.framework.encoder_q.state_dict(), tuning.model.framework.encoder_q.state_dict()
    for name, weight in weights.items():
        if not name.startswith("fc."):
            assert torch.equal(start[name], weight), name
    tuning.fit()
    assert len(tuning.datamodule.training_clips()) == 30


def test_a_checkpoint_of_another_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = build(["--config", config("first", "Supervised", "num_classes: 15")]).fit()
    with pytest.raises(ValueError, match="checkpoint: its weights do not fit the configuration"):
        Supervised(STGCN("ntu", width=8, feature_dim=16), 15, pretrained=str(checkpoint))
    with pytest.raises(ValueError, match="checkpoint: expected a file, found none at no.ckpt"):
        Supervised(STGCN("ntu", width=4, feature_dim=16), 15, pretrained="no.ckpt")


def test_frozen_statistics_stay() -> None:
    model = Supervised(STGCN("ntu", width=4, feature_dim=16), 3, frozen_statistics=True).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    clips, labels = torch.randn(6, 3, 8, 25, 2), torch.arange(6) % 3
    first, second = model(clips, labels)["loss"], model(clips, labels)["loss"]
    assert torch.equal(first, second)  # dropout drops nothing
    first.backward()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert all(parameter.grad is not None for parameter in model.parameters())
