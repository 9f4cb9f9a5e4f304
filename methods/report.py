"""Results for people and programs: folders, JSON, plots and tables."""

from __future__ import annotations

import datetime
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.table import Table
from skelops.methods.evaluation import Evaluation
from torch import Tensor

from skelops.files import replaced
from skelops.info import devices, versions


def claim_folder(candidates: Callable[[int], Path]) -> Path:
    """Makes and returns the first of the folders ``candidates(0), candidates(1), ...`` that does not exist."""
    for number in itertools.count():
        folder = candidates(number)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def new_folder(path: str | Path) -> Path:
    """Makes ``path``, or ``path_2``, ``path_3``, ... where it exists."""
    path = Path(path)
    return claim_folder(lambda number: path.with_name(f"{path.name}_{number + 1}") if number else path)


@contextmanager
def results_folder(path: str | Path) -> Iterator[Path]:
    """A `new_folder` for what the block finds, made before any of it; where the block fails, it goes again if empty."""
    folder = new_folder(path)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def write_summary(path: Path, content: Mapping[str, Any]) -> None:
    """JSON with the given content and where and when it came about."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    text = json.dumps({**content, "versions": versions(), "devices": devices(), "date": now}, indent=1)
    text = re.sub(r"\[[\d\s,]+\]", lambda row: re.sub(r"\s+", " ", row[0]), text)
    with replaced(path) as file:
        file.write_text(text + "\n")


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracies from 0 to 1, and the confusion matrix as rows of true classes."""
    knn = {str(k): accuracy for k, accuracy in evaluation.knn.items()}
    return {"linear": evaluation.linear, "knn": knn, "confusion": evaluation.confusion.tolist()}


def accuracy_table(title: str, rows: Mapping[str, Evaluation]) -> Table:
    """A row per encoder: accuracy of the linear probe and of k nearest neighbours, in percent."""
    table = Table(title=title, title_justify="left")
    table.add_column("encoder")
    table.add_column("linear", justify="right")
    for k in next(iter(rows.values())).knn:
        table.add_column(f"kNN, k={k}", justify="right")
    for name, evaluation in rows.items():
        accuracies = [evaluation.linear, *evaluation.knn.values()]
        table.add_row(name, *(f"{accuracy:.1%}" for accuracy in accuracies))
    return table


def _figure(width: float, height: float) -> Any:
    # The object interface draws to files without a display and leaves no global state behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_confusion(path: Path, confusion: Tensor, class_names: Sequence[str], title: str) -> None:
    """Confusion matrix as PNG: share of each true class, in percent."""
    size = len(class_names)
    share = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1) * 100
    side = max(5.0, 0.38 * size)
    figure = _figure(side + 1.5, side)
    axes = figure.add_subplot()
    image = axes.imshow(share, vmin=0, vmax=100, cmap="Blues")
    if size <= 30:
        axes.set_xticks(range(size), class_names, rotation=90)
        axes.set_yticks(range(size), class_names)
        for row, column in share.ge(0.5).nonzero().tolist():
            value = share[row, column].item()
            color = "white" if value > 60 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=7)
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, label="share of the true class (%)")
    with replaced(path) as file:
        figure.savefig(file, dpi=130)


def plot_curves(path: Path, curves: Mapping[str, Sequence[tuple[float, float]]], title: str) -> None:
    """Loss curves as PNG: (step, value) points by name."""
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name, marker=".")
    axes.set(title=title, xlabel="training step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    with replaced(path) as file:
        figure.savefig(file, dpi=130)
