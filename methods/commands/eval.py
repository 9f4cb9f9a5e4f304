"""``skelops eval``: what a checkpoint has learned, beside a random encoder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from skelops.methods.checkpoint import load_encoder, read_checkpoint
from skelops.methods.commands.train import quiet
from skelops.methods.data_module import SkeletonData
from skelops.methods.encoders import Encoder
from skelops.methods.evaluation import Evaluation, LinearProbe, evaluate, random_twin
from skelops.methods.report import (
    accuracy_table,
    evaluation_json,
    plot_confusion,
    results_folder,
    write_summary,
)

from skelops.cli import CommandError, user_errors


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="skelops eval",
        description="Linear probe and k nearest neighbours of a frozen encoder, beside a random one.",
        exit_on_error=False,
    )
    parser.add_argument("--checkpoint", type=str, required=True, help="checkpoint of skelops train")
    parser.add_argument("--data", type=str, help="folder of the data (default: where it was in training)")
    parser.add_argument("--out", type=str, help="folder of the results (default: eval beside the checkpoints)")
    parser.add_argument("--neighbours", type=list[int], default=[1, 10, 20], help="k of kNN")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default=default, help="where the encoder runs")
    parser.add_class_arguments(LinearProbe, "probe")
    return parser


def compare(
    encoder: Encoder, data: SkeletonData, probe: LinearProbe, neighbours: Sequence[int]
) -> dict[str, Evaluation]:
    """Evaluations of a random encoder of the same configuration and of the trained one."""
    train, test = data.split("train"), data.split("test")
    encoders = {"random": random_twin(encoder), "trained": encoder}
    return {name: evaluate(e, train, test, probe, neighbours) for name, e in encoders.items()}


def write_results(folder: Path, rows: dict[str, Evaluation], data: SkeletonData, **content: Any) -> None:
    """summary.json and confusion.png of the trained encoder."""
    train, test = data.split("train"), data.split("test")
    clips = {"train": len(train), "test": len(test), **data.hparams}
    results = {name: evaluation_json(evaluation) for name, evaluation in rows.items()}
    plot_confusion(folder / "confusion.png", rows["trained"].confusion, train.class_names, "linear probe, test clips")
    write_summary(folder / "summary.json", {**content, "data": clips, "results": results})


def default_folder(checkpoint: str) -> Path:
    """``eval`` in the folder of the run, beside the folder of its checkpoints; of a file elsewhere, beside the file."""
    beside = Path(checkpoint).resolve().parent
    return (beside.parent if beside.name == "checkpoints" else beside) / "eval"


def main(arguments: Sequence[str]) -> None:
    """``skelops eval ARGUMENTS``."""
    quiet()
    with user_errors():
        parser = _parser()
        try:
            options = parser.instantiate_classes(parser.parse_args(list(arguments)))
        except argparse.ArgumentError as error:
            raise CommandError(" ".join(str(error).split())) from error
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device: expected cpu (no CUDA device is available), got cuda")
        checkpoint = read_checkpoint(options.checkpoint)
        encoder = load_encoder(checkpoint).to(options.device)
        settings = dict(checkpoint["datamodule_hyper_parameters"])
        if options.data is not None and settings["source"] == "synthetic":
            raise ValueError(f"--data: expected none for a checkpoint of the synthetic set, got {options.data}")
        data = SkeletonData(**{**settings, "folder": options.data or settings["folder"]})
        with results_folder(options.out or default_folder(options.checkpoint)) as folder:
            rows = compare(encoder, data, options.probe, options.neighbours)
            write_results(folder, rows, data, checkpoint=str(options.checkpoint), epoch=checkpoint["epoch"] + 1)
    Console().print(accuracy_table(f"{data.hparams['source']}, {len(data.split('test'))} test clips", rows))
    print(f"results: {folder}")
