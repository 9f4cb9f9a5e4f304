"""``skelops demo``: SkeleMixCLR from data to an accuracy table, and what the fused ops save, in a few minutes."""

from __future__ import annotations

import copy
import csv
import json
import statistics
import time
from datetime import timedelta
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Timer
from rich.console import Console
from rich.table import Table
from skelops.methods.commands.eval import compare, write_results
from skelops.methods.commands.train import TrainCLI, build
from skelops.methods.evaluation import Evaluation, LinearProbe
from skelops.methods.framework import Batch
from skelops.methods.report import accuracy_table, new_folder, plot_curves
from skelops.methods.training import Training
from torch import Tensor

import skelops
from skelops import _native
from skelops.cli import CommandError, user_errors

# Shares of the time: measuring steps, training; the rest is for reading data and evaluation.
STEP_TIME_SHARE, TRAINING_SHARE = 0.12, 0.68
MAX_EPOCHS = 200


def output_folder(out: str) -> Path:
    """``out`` where it is new, empty or holds an earlier demo, whose files are then replaced; else ``out_2``, ..."""
    folder = Path(out)
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    try:
        ours = json.loads((folder / "summary.json").read_text())["command"] == "skelops demo"
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    return folder if ours else new_folder(folder)


def _training_step(model: Training, optimizer: torch.optim.Optimizer, clips: Tensor, labels: Tensor) -> float:
    """Seconds of one training step."""
    start = time.perf_counter()
    optimizer.zero_grad()
    model.step(Batch(clips, labels, torch.arange(len(clips), device=clips.device)))["loss"].backward()
    optimizer.step()
    return time.perf_counter() - start


def step_times(model: Training, clips: Tensor, labels: Tensor, seconds: float) -> dict[str, list[float]]:
    """Seconds of training steps on the eager reference and with the fused ops, measured in turns.

    Both train their own copy of the model on the same clips; the first step of each is not counted.
    """
    twins = {}
    for backend in ("reference", "auto"):
        twin = copy.deepcopy(model).train()
        twin.generator = torch.Generator().manual_seed(0)
        twins[backend] = twin, torch.optim.SGD(twin.framework.encoder_q.parameters(), lr=1e-3)
    times: dict[str, list[float]] = {backend: [] for backend in twins}
    start = time.perf_counter()
    while len(times["auto"]) < 4 or time.perf_counter() - start < seconds:
        for backend, (twin, optimizer) in twins.items():
            with skelops.backend(backend):
                times[backend].append(_training_step(twin, optimizer, clips, labels))
    return {backend: values[1:] for backend, values in times.items()}


def _loss_curves(metrics: Path) -> dict[str, list[tuple[float, float]]]:
    """Mean losses of the epochs by name, from the CSV log of a run."""
    columns = {"instance": "loss_instance_epoch", "trimmed": "loss_trimmed_epoch", "truncated": "loss_truncated_epoch"}
    with metrics.open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss_epoch"]]
    return {name: [(float(row["step"]), float(row[column])) for row in rows] for name, column in columns.items()}


def _table(rows: dict[str, Evaluation], times: dict[str, float], title: str) -> Table:
    """The accuracy table with the step times in a column of their own: eager beside random, fused beside trained."""
    table = accuracy_table(title, rows)
    table.add_section()
    speedup = times["reference"] / times["auto"]
    fused = f"{times['auto']:.2f} s ({speedup:.2f}x)" if not _native.missing["cpu"] else "not built"
    table.add_row("training step", f"eager {times['reference']:.2f} s", f"fused {fused}")
    return table


def train(cli: TrainCLI, seconds: float, step: float) -> int:
    """Trains for as many epochs as fit; returns their number. A machine that slows down stops earlier."""
    epochs = int(seconds / (step * len(cli.datamodule.train_dataloader())))
    cli.trainer.fit_loop.max_epochs = max(1, min(MAX_EPOCHS, epochs))
    timer = Timer(timedelta(seconds=1.15 * seconds), interval="epoch", verbose=False)
    cli.trainer.callbacks.append(timer)
    cli.fit()
    return cli.trainer.current_epoch


def main(data: str | None, out: str, minutes: float) -> None:
    """``skelops demo``: training goes to OUT/training/version_K; summary.json and the plots to OUT."""
    start = time.perf_counter()
    if not 0 < minutes < float("inf"):
        raise CommandError(f"--minutes: expected a finite number above zero, got {minutes}")
    name = "synthetic" if data is None else "nw_ucla"
    with user_errors():
        folder = output_folder(out)
    arguments = ["--config", f"skelemix_clr/{name}", "--runs", str(folder), "--name", "training"]
    arguments += ["--monitor.every", "0", *([] if data is None else ["--data.folder", data])]
    cli = build(arguments)
    dataset, batch_size = cli.datamodule.split("train"), cli.datamodule.hparams["batch_size"]
    print(f"SkeleMixCLR on the {name} set: {len(dataset)} training clips", flush=True)
    batch = dataset.clips[:batch_size], dataset.labels[:batch_size]
    measured = step_times(cli.model, *batch, STEP_TIME_SHARE * 60 * minutes)
    times = {backend: statistics.median(values) for backend, values in measured.items()}
    # The fastest step plans the time: a moment of load on the machine should not halve the training.
    epochs = train(cli, TRAINING_SHARE * 60 * minutes, min(measured["auto"]))
    rows = compare(cli.model.framework.encoder_q, cli.datamodule, LinearProbe(), (1, 10, 20))
    plot_curves(folder / "loss_curve.png", _loss_curves(cli.folder / "metrics.csv"), f"SkeleMixCLR on the {name} set")
    step = {"eager_s": times["reference"], "fused_s": times["auto"], "native": _native.missing["cpu"] or "loaded"}
    total = time.perf_counter() - start
    write_results(
        folder, rows, cli.datamodule, command="skelops demo", epochs=epochs, training_step=step, seconds=round(total, 1)
    )
    Console().print(_table(rows, times, f"SkeleMixCLR, {name} set, {epochs} epochs, {total:.0f} s in all"))
    if rows["trained"].linear <= rows["random"].linear:
        print(f"{epochs} epochs did not yet do better than random weights: `skelops demo --minutes 10` trains longer")
    print(f"results: {folder}")
