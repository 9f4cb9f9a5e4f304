"""The packaged configurations: each is parsed and built, by its name and with what it includes."""

from __future__ import annotations

from functools import wraps
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("lightning.pytorch", reason="needs the [train] extra")

from skelops.methods import STDCL, STGCN, FineTuned, Supervised
from skelops.methods.commands.configs import CONFIGS, packaged, resolved
from skelops.methods.commands.train import TrainCLI, build
from skelops.methods.data_module import SkeletonData

from skelops.cli import CommandError
from skelops.data import SkeletonDataset, ntu, pku_mmd

METHODS = ("scd_net", "sds_cl", "skeattn_clr", "skelemix_clr", "skeleton_clr", "std_cl")
SETS = ("nw_ucla", "synthetic", *ntu.BENCHMARKS, "pku1", "pku2")
CLASSES = {"synthetic": 15, "nw_ucla": 10, "ntu60": 60, "ntu120": 120, "pku1": 51, "pku2": 51}
#: Of the training splits.
CLIPS = {"ntu60_xsub": 40091, "ntu60_xview": 37646}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read, and linear layers, of which large encoders mostly consist, keep the memory they get."""
    monkeypatch.setattr(TrainCLI, "_check_data", lambda self: None)
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)


def test_every_method_has_every_set() -> None:
    assert set(packaged()) >= {f"{method}/{name}" for method in (*METHODS, "fine_tune") for name in SETS}
    parts = {file.stem for file in CONFIGS.glob("parts/*.yaml")}
    included = {
        layer.removeprefix("--config=").removeprefix(f"{CONFIGS}/parts/").removesuffix(".yaml")
        for name in packaged()
        for layer in resolved(["--config", name])
    }
    assert parts <= included, "every part is included somewhere"


@pytest.mark.usefixtures("without_data")
@pytest.mark.parametrize("name", packaged())
def test_a_configuration_builds(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, of_set = name.split("/")
    if method == "fine_tune":
        encoder = STGCN("nw_ucla" if of_set == "nw_ucla" else "ntu", width=4, feature_dim=16)
        monkeypatch.setattr("skelops.methods.fine_tuned.read_checkpoint", lambda path: path)
        monkeypatch.setattr("skelops.methods.fine_tuned.load_encoder", lambda checkpoint: encoder)
    pretrained = ["--model.framework.init_args.pretrained", "any.ckpt"] if method == "fine_tune" else []
    cli = build(["--config", name, *pretrained])
    framework, data = cli.model.framework, cli.datamodule.hparams
    assert cli.config.name == name.replace("/", "-")
    if method == "supervised":
        assert type(framework) is Supervised
    else:
        assert method.replace("_", "") == type(framework).__name__.lower().replace("finetuned", "finetune")
    of_set, both, _ = of_set.partition("_sds_cl")  # fine-tuning as its release does it
    source = "pku_mmd" if of_set.startswith("pku") else of_set.partition("_")[0].rstrip("0126")
    assert data["source"] == ("nw_ucla" if source == "nw" else source)
    if source in ("ntu", "pku_mmd"):
        benchmark = data["options"]["benchmark"]
        assert benchmark in (ntu if source == "ntu" else pku_mmd).BENCHMARKS
        assert benchmark.startswith(of_set)
    assert framework.encoder_q.layout.name == ("nw_ucla" if source == "nw" else "ntu")
    if isinstance(framework, Supervised) and method != "supervised":
        assert framework.num_classes == CLASSES[of_set if source == "nw" else of_set.partition("_")[0]]
    if isinstance(framework, STDCL):
        assert framework.clips == CLIPS.get(of_set, framework.clips)
        stride = framework.encoder_q.temporal_stride
        assert framework.heads["temporal"].embed.in_features % (-(-data["frames"] // stride)) == 0
    if isinstance(framework, FineTuned):
        assert framework.with_motion == bool(both)
        assert framework.frozen_statistics == (not both and source in ("ntu", "pku_mmd"))
    optimizer = cli.model.optimizer([nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["lr"] > 0


@pytest.mark.usefixtures("without_data")
def test_published_settings_and_the_last_word_of_a_configuration() -> None:
    released = build(["--config", "skeattn_clr/ntu120_xset"])
    off = build(["--config", "skeattn_clr/ntu60_xview", "--data.options.missing", "names.txt"])
    assert (released.model.framework.salience, off.model.framework.salience) == (0.5, 1.0)
    assert off.datamodule.hparams["options"] == {"benchmark": "ntu60_xview", "missing": "names.txt"}
    assert off.model.framework.queue.queue.shape == (128, 32768)
    assert off.trainer.max_epochs == 300 and off.model.decay == [250]
    rates = {}
    for name in ("xsub", "xview"):
        parameter = [nn.Parameter(torch.zeros(1))]
        rates[name] = build(["--config", f"std_cl/ntu60_{name}"]).model.optimizer(parameter).defaults
    assert (rates["xsub"]["lr"], rates["xview"]["lr"]) == (0.025, 0.01)
    assert rates["xview"]["nesterov"] and rates["xview"]["weight_decay"] == 0.0004


@pytest.mark.usefixtures("without_data")
@pytest.mark.parametrize(("name", "crop"), [("ntu60_xsub", 0), ("nw_ucla", 6), ("synthetic", 6)])
def test_views_of_fine_tuning(name: str, crop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """SkeleMixCLR's release takes clips as they are; the reported numbers of NW-UCLA are of cropped ones."""
    encoder = STGCN("nw_ucla" if name == "nw_ucla" else "ntu", width=4, feature_dim=16)
    monkeypatch.setattr("skelops.methods.fine_tuned.read_checkpoint", lambda path: path)
    monkeypatch.setattr("skelops.methods.fine_tuned.load_encoder", lambda checkpoint: encoder)
    views = build(["--config", f"fine_tune/{name}", "--model.framework.init_args.pretrained", "any.ckpt"]).model.views
    assert (views.crop, views.shear, views.rotation) == (crop, 0, 45 if crop else 0)


@pytest.mark.usefixtures("without_data")
@pytest.mark.parametrize(
    ("name", "recipe", "whole"),
    [
        ("scd_net/ntu60_xsub", "scd_net", True),
        ("scd_net/pku2", "scd_net", True),
        ("sds_cl/ntu120_xset", "sds_cl", True),
        ("std_cl/ntu60_xview", "std_cl", True),
        ("skelemix_clr/ntu60_xsub", None, False),
    ],
)
def test_clips_are_prepared_as_the_methods_do(name: str, recipe: str | None, whole: bool) -> None:
    data = build(["--config", name]).datamodule.hparams
    assert (data["recipe"], data["whole_clips"]) == (recipe, whole)
    assert data["options"]["benchmark"].startswith(name.split("/")[1])


@pytest.mark.parametrize("source", ["ntu", "pku_mmd"])
def test_whole_clips_and_the_recipe_reach_the_reader(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    empty = SkeletonDataset(torch.zeros(2, 3, 4, 25, 2), torch.zeros(2, dtype=torch.int64), "ntu", ("a",))
    reader = {"ntu": ntu, "pku_mmd": pku_mmd}[source]
    monkeypatch.setattr(
        reader, "load", wraps(reader.load)(lambda folder, **arguments: asked.append(arguments) or empty)
    )
    data = SkeletonData(source, "folder", frames=16, whole_clips=True, recipe="sds_cl", options={"align": False})
    data.training_clips()
    data.split("test")
    assert asked == [
        {"split": "train", "frames": None, "align": False, "recipe": "sds_cl"},
        {"split": "test", "frames": 16, "align": False, "recipe": "sds_cl"},
    ]
    with pytest.raises(ValueError, match="data.options: expected no recipe .data.recipe is sds_cl., got 'std_cl'"):
        SkeletonData(source, "folder", recipe="sds_cl", options={"recipe": "std_cl"})


def test_layers_come_in_order_and_relative_to_their_file(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine/base.yaml").write_text("name: base\ntrainer: {max_epochs: 3}\n")
    (here / "mine/top.yaml").write_text("include: [skelemix_clr/synthetic, base.yaml]\nseed_everything: 5\n")
    for arguments in (["--config", "mine/top.yaml"], ["--config=mine/top.yaml"], ["-c", "mine/top.yaml"]):
        layers = resolved([*arguments, "--name", "x"])
        assert layers == [
            f"--config={CONFIGS / 'skelemix_clr/synthetic.yaml'}",
            "--config=mine/base.yaml",
            "--config=seed_everything: 5\n",
            "--name",
            "x",
        ]
        assert resolved(["--name", "x", *arguments]) == layers, "the other arguments win, wherever they stand"
    cli = build(["--config", "mine/top.yaml"])
    assert (cli.config.name, cli.config.seed_everything, cli.trainer.max_epochs) == ("base", 5, 3)
    assert "include" not in cli.config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: [wrong.yaml]", "--config: wrong.yaml includes itself"),
        ("include: [nope]", r"--config: expected a file or one of .*skelemix_clr/\{.*nw_ucla.*\}.*, got nope"),
        ("include: 3", "--config: wrong.yaml: include: expected a list of names, got 3"),
        ("include: [1]", r"--config: wrong.yaml: include: expected a list of names, got \[1\]"),
        ("include: [skelemix_clr/synthetic]\ndata: {batches: 3}", "batches"),
        ("model: [", "--config: wrong.yaml"),
    ],
)
def test_wrong_files_are_one_line(text: str, message: str) -> None:
    Path("wrong.yaml").write_text(text)
    with pytest.raises(CommandError, match=message) as caught:
        build(["--config", "wrong.yaml"])
    assert "\n" not in str(caught.value)


def test_a_part_of_the_views_is_overridden_alone(without_data: None) -> None:
    """Whatever their class, and by either way of naming it."""
    for key in ("model.views.probability", "model.views.init_args.probability"):
        views = build(["--config", "scd_net/synthetic", f"--{key}", "0.25"]).model.views
        assert (views.layout, views.frames, views.shear, views.probability) == ("ntu", 16, 0.5, 0.25)
    views = build(["--config", "skelemix_clr/nw_ucla", "--model.views.rotation", "30"]).model.views
    assert (views.rotation, views.crop, views.shear) == (30, 6, 0.5)
