"""The command line: what it prints, its exit codes, and mistakes told in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import skelops
from skelops import _backend, _native
from skelops.cli import TRAIN_EXTRA, main
from skelops.info import report

TINY = """
name: tiny
model:
  framework:
    class_path: skelops.methods.SkeleMixCLR
    init_args:
      encoder:
        class_path: skelops.methods.STGCN
        init_args: {layout: ntu, width: 4, feature_dim: 16}
      queue_size: 48
data: {source: synthetic, frames: 8, batch_size: 12, options: {clips_per_class: 2}}
trainer: {max_epochs: 1, accelerator: cpu}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def train_extra() -> None:
    pytest.importorskip("lightning.pytorch", reason="needs the [train] extra")


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(skelops.__file__).parents[1]), *sys.path])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The single line that a mistake prints, after exit code 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.strip()


def test_info_names_every_op_and_why_a_backend_does_not_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"skelops {skelops.__version__}" in text
    assert f"torch {torch.__version__}" in text
    lines = [line.split() for line in text.splitlines()]
    for name in ("graph_conv", "squeeze_pool", "info_nce_backward"):
        served = {words[1]: words[2] for words in lines if words[:1] == [name]}
        assert served.keys() == {"cpu", "cuda"}
    if reason := _native.missing["cuda"]:
        assert f"cuda     {reason}" in text


def test_info_says_where_nobody_measured_which_backend_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "choose", lambda *call: _backend.Choice("cuda" if call[2] == "cuda" else "cpu", {}))
    for reason, said in ((None, True), ("mask_pool has no Triton kernel", False)):
        monkeypatch.setattr(_backend, "unavailable", lambda *call, reason=reason: reason)
        lines = [line for line in report().splitlines() if line.split()[:1] == ["mask_pool"]]
        note = "before triton by default, which nobody measured on this GPU"
        assert [note in line for line in lines] == [False, said]


@pytest.mark.parametrize("command", ["info", "train", "eval", "demo"])
def test_without_the_extra(command: str) -> None:
    """info works on torch and numpy alone; the others name the extra in one line."""
    hide = f"import sys\nfor name in {(*TRAIN_EXTRA, 'yaml')!r}: sys.modules[name] = None\n"
    result = python(f"{hide}from skelops.cli import main\nraise SystemExit(main([{command!r}]))")
    if command == "info":
        assert (result.returncode, result.stderr) == (0, "")
        assert "native CPU kernels" in result.stdout
    else:
        assert result.returncode == 2
        assert result.stderr == f"skelops {command} needs the [train] extra: pip install 'skelops[train]'\n"


def test_importing_skelops_and_its_methods_needs_no_extra() -> None:
    hide = f"import sys\nfor name in {(*TRAIN_EXTRA, 'yaml')!r}: sys.modules[name] = None\n"
    result = python(f"{hide}import skelops, skelops.methods, skelops.augment\nskelops.methods.SkeleMixCLR")
    assert (result.returncode, result.stderr) == (0, "")


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["tarin"])
    assert error.value.code == 2
    assert "tarin" in capsys.readouterr().err


def test_python_dash_m() -> None:
    assert python("import runpy, sys; sys.argv = ['skelops', 'info']; runpy.run_module('skelops')").returncode == 0


@pytest.mark.usefixtures("train_extra", "here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nope"], "expected a file or one of fine_tune/{ntu120_xset,"),
        (["--config", "tiny.yaml", "--model.framework.tau", "1"], "tau"),
        (["--config", "tiny.yaml", "--data.batch_sizes", "1"], "--data.batch_sizes"),
        (["--config", "tiny.yaml", "--data.batch_size", "many"], "many"),
        (["--config", "tiny.yaml", "--data.source", "kinetics"], "kinetics"),
        (["--config", "tiny.yaml", "--data.batch_size", "31"], "batch_size: expected 1 to 30"),
        (["--config", "tiny.yaml", "--data.repeats", "0"], "data.repeats: expected at least 1, got 0"),
        (["--config", "scd_net/synthetic", "--data.frames", "24"], "clips: expected 16 frames, got 24"),
        (
            ["--config", "tiny.yaml", "--data.options.clips", "3"],
            "data.options: expected some of align, clips_per_class, noise, occlusion, seed for synthetic, got clips",
        ),
        (["--config", "tiny.yaml", "--data.recipe", "sds_cl"], "data.recipe: expected none for synthetic, got sds_cl"),
        (["--config", "tiny.yaml", "--data.options.split", "test"], "data.options: expected no split (training and"),
        (["--config", "tiny.yaml", "--data.options.frames", "9"], "data.options: expected no frames (set data.frames"),
        (["--config", "tiny.yaml", "--data.options.views", "[1,2]"], "data.options: expected no views (the training"),
        (["--config", "tiny.yaml", "--data.batch_size", "2"], "data.batch_size: expected at least 3 for SkeleMixCLR"),
        (["--config", "skeattn_clr/synthetic", "--data.batch_size", "2"], "at least 3 for SkeAttnCLR, got 2"),
        (
            ["--config", "std_cl/synthetic", "--data.frames", "32"],
            "model.framework.init_args.frames: expected 8, those of the last map, got 4",
        ),
        (["--config", "tiny.yaml", "--trainer.max_epochs", "0"], "trainer.max_epochs: expected at least 1, got 0"),
        (["--config", "tiny.yaml", "--trainer.max_epochs", "-1"], "trainer.max_epochs: expected at least 1, got -1"),
        (["--config", "tiny.yaml", "--trainer.max_steps", "0"], "trainer.max_steps: expected at least 1"),
        (["--config", "tiny.yaml", "--trainer.devices", "2"], "trainer.devices: expected 1, got 2"),
        (["--config", "tiny.yaml", "--trainer.val_check_interval", "1.5"], "trainer: "),
        (
            ["--config", "tiny.yaml", "--trainer.limit_train_batches", "0"],
            "trainer.limit_train_batches: expected at least one of the 2 batches of an epoch, got 0",
        ),
        (["--config", "tiny.yaml", "--trainer.limit_train_batches", "0.01"], "of the 2 batches of an epoch, got 0.01"),
        (["--config", "tiny.yaml", "--trainer.overfit_batches", "0.01"], "trainer.overfit_batches: expected at least"),
        (["--config", "tiny.yaml", "--model.decay", "[-5]"], "decay: expected epochs of at least 0, got [-5]"),
        (["--config", "tiny.yaml", "--model.warmup", "-3"], "warmup: expected a finite number of at least 0, got -3"),
        (["--config", "tiny.yaml", "--model.optimizer", "SGD", "--model.optimizer.lr", "-1"], "learning rate: -1"),
        (
            ["--config", "tiny.yaml", "--model.framework.temperature", "0"],
            "temperature: expected a finite number above",
        ),
        (["--config", "sds_cl/synthetic", "--model.framework.temperature", "-1"], "temperature: expected a finite"),
        (["--config", "std_cl/synthetic", "--model.framework.temperature", "0"], "temperature: expected a finite"),
        (
            ["--config", "tiny.yaml", "--model.framework.momentum", "1.5"],
            "momentum: expected a number from 0 to 1, got",
        ),
        (["--config", "tiny.yaml", "--monitor.neighbours", "0"], "monitor.neighbours: expected at least 1, got 0"),
        (["--config", "tiny.yaml", "--monitor.every", "-1"], "monitor.every: expected at least 0, got -1"),
        (["--config", "tiny.yaml", "--model.views.shear", "-1"], "shear: expected at least 0"),
        (
            ["--config", "tiny.yaml", "--data.source", "nw_ucla", "--data.options", "{}"],
            "data.folder: expected the folder",
        ),
        (
            ["--config", "tiny.yaml", "--data.source", "nw_ucla", "--data.folder", "no/such", "--data.options", "{}"],
            "no/such",
        ),
        (["--config", "tiny.yaml", "--ckpt_path", "no.ckpt"], "no.ckpt"),
        (["--config", "tiny.yaml", "--ckpt_path", "last"], "expected a checkpoint in runs/tiny/version_*/checkpoints"),
    ],
)
def test_mistakes_in_train(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in one_line(capsys, "train", *arguments)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("train_extra", "here")
def test_a_mistake_that_a_step_finds_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*args: object) -> None:
        raise ValueError("clips: expected\nothers")

    monkeypatch.setattr("skelops.methods.training.Training.training_step", step)
    assert "skelops train: clips: expected others" in one_line(capsys, "train", "--config", "tiny.yaml")


@pytest.mark.usefixtures("train_extra")
def test_a_wrong_key_in_the_file_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "wrong.yaml").write_text(TINY.replace("queue_size", "queue_length"))
    assert "queue_length" in one_line(capsys, "train", "--config", "wrong.yaml")
    (here / "broken.yaml").write_text("model: [")
    assert "broken.yaml" in one_line(capsys, "train", "--config", "broken.yaml")


@pytest.mark.usefixtures("train_extra")
def test_bad_checkpoints_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "checkpoint" in one_line(capsys, "eval")
    assert "expected a file, found none at no.ckpt" in one_line(capsys, "eval", "--checkpoint", "no.ckpt")
    (here / "text.ckpt").write_text("not a checkpoint")
    line = one_line(capsys, "eval", "--checkpoint", "text.ckpt")
    assert line.endswith("checkpoint: text.ckpt cannot be read (it is no checkpoint)")
    (here / "empty.ckpt").touch()
    assert "empty.ckpt" in one_line(capsys, "eval", "--checkpoint", "empty.ckpt")
    for content in (b"h", b"jjj", b"\x80\x02."):  # what pickles stumble over in ways of their own
        (here / "odd.ckpt").write_bytes(content)
        assert "odd.ckpt cannot be read" in one_line(capsys, "eval", "--checkpoint", "odd.ckpt")
    torch.save({"state_dict": {}}, here / "other.ckpt")
    assert "other.ckpt was not written by skelops train" in one_line(capsys, "eval", "--checkpoint", "other.ckpt")


@pytest.mark.usefixtures("train_extra")
def test_train_then_eval(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "tiny.yaml"]) == 0
    checkpoint = here / "runs/tiny/version_0/checkpoints/last.ckpt"
    assert f"skelops eval --checkpoint {checkpoint.relative_to(here)}" in capsys.readouterr().out
    wide = ["--ckpt_path", str(checkpoint), "--model.framework.encoder.width", "8"]
    assert "do not fit" in one_line(capsys, "train", "--config", "tiny.yaml", *wide)
    for folder in ("eval", "eval_2"):
        assert main(["eval", "--checkpoint", str(checkpoint), "--neighbours", "[1,5]"]) == 0
        output = capsys.readouterr().out
        assert "random" in output
        assert "trained" in output
        results = checkpoint.parents[1] / folder
        summary = json.loads((results / "summary.json").read_text())
        assert summary["results"].keys() == {"random", "trained"}
        for result in summary["results"].values():
            confusion = torch.tensor(result["confusion"])
            assert confusion.sum().item() == summary["data"]["test"] == 30
            assert result["linear"] == pytest.approx(confusion.diagonal().sum().item() / 30)
            assert result["knn"].keys() == {"1", "5"}
        assert (results / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert "neighbours: expected 1 to 30" in one_line(
        capsys, "eval", "--checkpoint", str(checkpoint), "--neighbours", "[31]"
    )
    assert "neighbours: expected at least one k" in one_line(
        capsys, "eval", "--checkpoint", str(checkpoint), "--neighbours", "[]"
    )
    assert "more than the 1 of the checkpoint" in one_line(
        capsys, "train", "--config", "tiny.yaml", "--ckpt_path", "last"
    )
    if not torch.cuda.is_available():
        assert "--device" in one_line(capsys, "eval", "--checkpoint", str(checkpoint), "--device", "cuda")
    line = one_line(capsys, "eval", "--checkpoint", str(checkpoint), "--data", "clips")
    assert "--data: expected none for a checkpoint of the synthetic set, got clips" in line
    (here / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    assert "cut.ckpt cannot be read (it is cut off or damaged" in one_line(capsys, "eval", "--checkpoint", "cut.ckpt")
    cut = torch.load(checkpoint, weights_only=True)
    torch.save({key: value for key, value in cut.items() if key != "random_state"}, here / "other.ckpt")
    assert "other.ckpt was not written by skelops train" in one_line(capsys, "eval", "--checkpoint", "other.ckpt")
    del cut["state_dict"]["framework.encoder_q.edge_importance.3"]
    torch.save(cut, here / "cut.ckpt")
    line = one_line(capsys, "eval", "--checkpoint", "cut.ckpt")
    assert "the weights of cut.ckpt do not fit" in line
    assert "edge_importance.3" in line
    for key, value in (("name", "GCN"), ("arguments", {"width": 0}), ("arguments", {"depth": 3})):
        torch.save({**cut, "encoder": {**cut["encoder"], key: value}}, here / "other.ckpt")
        assert "checkpoint: other.ckpt: " in one_line(capsys, "eval", "--checkpoint", "other.ckpt")


@pytest.mark.usefixtures("train_extra")
def test_eval_knows_its_folder_before_the_work(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", "--config", "tiny.yaml"]) == 0
    run = here / "runs/tiny/version_0"
    neighbours = ["--neighbours", "[1]"]
    monkeypatch.chdir(run / "checkpoints")
    assert main(["eval", "--checkpoint", "last.ckpt", *neighbours]) == 0
    assert (run / "eval/summary.json").is_file()
    monkeypatch.chdir(here)
    (run / "checkpoints/last.ckpt").rename(here / "moved.ckpt")
    assert main(["eval", "--checkpoint", "moved.ckpt", *neighbours]) == 0
    assert (here / "eval/summary.json").is_file()
    capsys.readouterr()

    def work(*args: object) -> None:
        raise ValueError("the work has begun")

    monkeypatch.setattr("skelops.methods.commands.eval.compare", work)
    assert "tiny.yaml" in one_line(capsys, "eval", "--checkpoint", "moved.ckpt", "--out", "tiny.yaml/results")
    assert "the work has begun" in one_line(capsys, "eval", "--checkpoint", "moved.ckpt")
    assert not (here / "eval_2").exists(), "a failure leaves no empty folder"


@pytest.mark.usefixtures("train_extra", "here")
def test_interrupting_is_no_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        signal.raise_signal(signal.SIGINT)

    # A shell's background job starts with the signal ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("skelops.methods.training.Training.training_step", interrupt)
    try:
        assert main(["train", "--config", "tiny.yaml"]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert capsys.readouterr().err == "skelops train: interrupted; a run resumes with --ckpt_path last\n"


def test_minutes_of_tune_are_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--minutes: expected a number above zero, got nan" in one_line(capsys, "tune", "--minutes", "nan")


@pytest.mark.usefixtures("train_extra", "here")
@pytest.mark.parametrize("command", ["eval", "demo"])
def test_what_cannot_resume_does_not_say_so(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"skelops.methods.commands.{command}.main", interrupt)
    assert main([command]) == 130
    assert capsys.readouterr().err == f"skelops {command}: interrupted\n"


@pytest.mark.usefixtures("train_extra")
def test_demo(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from skelops.methods.commands import configs

    (here / "configs/skelemix_clr").mkdir(parents=True)
    (here / "configs/skelemix_clr/synthetic.yaml").write_text(TINY)
    for minutes in ("0", "inf", "nan"):
        assert f"expected a finite number above zero, got {minutes}" in one_line(capsys, "demo", "--minutes", minutes)
    assert "no/such" in one_line(capsys, "demo", "--data", "no/such")
    monkeypatch.setattr(configs, "CONFIGS", here / "configs")
    for run in range(2):
        assert main(["demo", "--out", "out", "--minutes", "0.01"]) == 0
        output = capsys.readouterr().out
        assert all(word in output for word in ("random", "trained", "linear", "eager", "fused"))
        summary = json.loads(Path("out/summary.json").read_text())
        assert summary["epochs"] >= 1
        assert summary["training_step"]["eager_s"] > 0
        random, trained = (summary["results"][name]["linear"] for name in ("random", "trained"))
        assert ("trains longer" in output) == (trained <= random)
        for name in ("loss_curve.png", "confusion.png"):
            assert Path("out", name).read_bytes().startswith(b"\x89PNG")
        assert Path(f"out/training/version_{run}/checkpoints/last.ckpt").is_file()
    assert not Path("out_2").exists()
    Path("mine").mkdir()
    Path("mine/summary.json").write_text("{}")
    assert main(["demo", "--out", "mine", "--minutes", "0.01"]) == 0
    assert Path("mine/summary.json").read_text() == "{}"
    assert Path("mine_2/summary.json").is_file()
