"""PKU-MMD I and II: long Kinect v2 recordings of 25 joints and two bodies, cut into labelled actions; 51 actions.

The folder holds ``skeleton/NAME.txt``, a line of 150 numbers per frame (2 bodies x 25 joints x (x, y, z) in metres, all
zeros for a body that is not there), ``label/NAME.txt``, a line ``action,start,end,confidence`` per action (actions
counted from 1, frames from 0, the end excluded), and the lists of the splits, ``cross_subject.txt`` and
``cross_view.txt``, in part II with ``_v2`` after these names. Liu et al., PKU-MMD: A Large Scale Benchmark for
Continuous Multi-Modal Human Action Understanding (arXiv 1703.07475); formats as the README of the release describes
them, folders and the frames of an action as in MAMP's reader.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from .bodies import NUM_BODIES
from .cache import cache_folder, cached_array, digest
from .dataset import SkeletonDataset
from .ntu import NUM_JOINTS
from .recipes import check_recipe, prepare, record

NUM_CLASSES = 51
#: Of the cache file: another number makes those of earlier versions old.
FORMAT = 1
#: Lists of the splits; part I has been published with either - or _ in these names.
BENCHMARKS = {
    "pku1_xsub": "cross?subject.txt",
    "pku1_xview": "cross?view.txt",
    "pku2_xsub": "cross?subject_v2.txt",
    "pku2_xview": "cross?view_v2.txt",
}
_NUMBERS = NUM_BODIES * NUM_JOINTS * 3

_T = TypeVar("_T")


class Action(NamedTuple):
    """A labelled part of a recording: label counted from 0, frames from ``start`` to before ``end``."""

    label: int
    start: int
    end: int


def _lines(path: Path) -> list[str]:
    """Lines without those that are empty at the end of the file."""
    try:
        return path.read_text("ascii").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a readable text file ({error})") from None


def _by_line(path: Path, lines: Sequence[str], parse: Callable[[str], _T]) -> list[_T]:
    """`parse` of every line; what it does not like is an error that names file and line."""
    results = []
    for number, line in enumerate(lines, 1):
        try:
            results.append(parse(line))
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: {error}") from None
    return results


def _parse_frame(line: str) -> np.ndarray:
    numbers = line.split()
    if len(numbers) != _NUMBERS:
        raise ValueError(f"expected {_NUMBERS} numbers, got {len(numbers)}")
    frame = np.array([float(number) for number in numbers], np.float32)
    if not np.isfinite(frame).all():
        raise ValueError("expected finite numbers, got NaN or an infinite one")
    return frame


def _parse_action(line: str) -> Action:
    fields = line.split(",")
    try:
        action, start, end = (int(field) for field in fields[:3])
    except ValueError:
        action, start, end = 0, 0, 0
    if len(fields) != 4 or not 1 <= action <= NUM_CLASSES or not 0 <= start <= end:
        raise ValueError(f"expected action (1 to {NUM_CLASSES}),start,end,confidence, got {line!r}")
    return Action(action - 1, start, end)


def read_skeleton(path: str | os.PathLike[str]) -> np.ndarray:
    """Read one recording: joints (T, 2, 25, 3) float32 in metres, zero where a body is not there.

    Raises:
        ValueError: unreadable, empty or malformed; names file and line.
    """
    path = Path(path)
    lines = _lines(path)
    if not lines:
        raise ValueError(f"{path}: expected a line per frame, found none")
    try:
        frames = np.loadtxt(lines, np.float32, comments=None, ndmin=2)
    except ValueError:
        frames = np.empty(0, np.float32)
    if frames.shape != (len(lines), _NUMBERS) or not np.isfinite(frames).all():
        frames = np.stack(_by_line(path, lines, _parse_frame))
    return frames.reshape(-1, NUM_BODIES, NUM_JOINTS, 3)


def read_actions(path: str | os.PathLike[str]) -> list[Action]:
    """Read the labels of one recording.

    Raises:
        ValueError: unreadable or malformed; names file and line.
    """
    path = Path(path)
    return _by_line(path, _lines(path), _parse_action)


def read_split(folder: str | os.PathLike[str], benchmark: str) -> dict[str, list[str]]:
    """Names of the recordings of the splits "train" and "test".

    Raises:
        ValueError: unknown benchmark, or its list is missing or malformed; names the file.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark: expected one of {', '.join(BENCHMARKS)}, got {benchmark!r}")
    found = sorted(Path(folder).glob(BENCHMARKS[benchmark]))
    if not found:
        raise ValueError(f"folder: expected {BENCHMARKS[benchmark].replace('?', '_')}, found none in {folder}")
    # A line of words before each list: "Training videos:" and, as the release spells it, "Validataion videos:".
    lines = [line for line in _lines(found[0]) if line.strip()]
    if len(lines) != 4 or not lines[0].startswith("Training") or not lines[2].startswith("Valid"):
        raise ValueError(f"{found[0]}: expected two lists of names, each after a line Training or Validation videos:")
    names = [[name.strip() for name in line.split(",") if name.strip()] for line in (lines[1], lines[3])]
    return dict(zip(("train", "test"), names, strict=True))


def _clips(
    path: Path, actions: Sequence[Action], recipe: str, frames: int | None, align: bool
) -> tuple[Tensor, Tensor]:
    """The actions of a recording (n, 3, frames, 25, 2) and their lengths (n,), 0 where no frame has a body.

    Frames without a body are left out, as of NTU RGB+D; bodies keep the places that they have in the file.
    """
    recording = read_skeleton(path)
    present = (recording != 0).any((1, 2, 3))
    absent = np.zeros((1, *recording.shape[1:]), np.float32)
    parts = [recording[start:end][present[start:end]] for _, start, end in actions]
    clips = [torch.from_numpy(part if len(part) else absent).permute(3, 0, 2, 1) for part in parts]
    prepared, lengths = prepare(clips, recipe, frames, align)
    return prepared, lengths * torch.tensor([len(part) > 0 for part in parts])


def load(
    folder: str | os.PathLike[str],
    benchmark: str = "pku1_xsub",
    split: str = "train",
    *,
    frames: int | None = 64,
    recipe: str = "resize",
    align: bool = True,
    cache: str | os.PathLike[str] | None = None,
) -> SkeletonDataset:
    """The set as one tensor (N, 3, frames, 25, 2): a clip per labelled action, prepared by a recipe.

    The first call parses every recording of the benchmark, both splits, into one memory-mapped file in the cache folder
    (38 kB a clip at 64 frames, 180 kB a whole one). An action without a body in any of its frames is left out, with a
    warning, as the readers of published methods do; frames past the end of a recording are none.

    Args:
        folder: folder of ``skeleton``, ``label`` and the lists of the splits.
        benchmark: one of `BENCHMARKS`; both parts have 51 classes, of which part II uses 41.
        split: "train" or "test".
        frames: frames T of every clip; None keeps those that each clip has, of longer ones 300, and pads with zeros to
            300.
        recipe, align: see `skelops.data.ntu.load`.
        cache: folder of the cache file; None is $SKELOPS_CACHE, else ~/.cache/skelops.

    Raises:
        ValueError: bad argument, missing or malformed files; names file and line.
    """
    check_recipe(recipe)
    names = read_split(folder, benchmark)
    if split not in names:
        raise ValueError(f"split: expected train or test, got {split!r}")
    recordings = sorted({*names["train"], *names["test"]})
    chosen = set(names[split])
    skeletons = [Path(folder, "skeleton", f"{name}.txt") for name in recordings]
    for file in skeletons:
        if not file.is_file():
            raise ValueError(f"folder: expected {file}, which is listed in a split, found none")
    actions = [read_actions(Path(folder, "label", file.name)) for file in skeletons]
    path = cache_folder(cache) / f"pku_mmd-{digest(skeletons, FORMAT, actions, recipe, frames, align)}.npy"

    def fill(array: np.ndarray) -> None:
        start = 0
        for file, labelled in zip(skeletons, actions, strict=True):
            if labelled:
                block = slice(start, start + len(labelled))
                array["clip"][block], array["length"][block] = _clips(file, labelled, recipe, frames, align)
            start += len(labelled)

    clips = cached_array(path, (sum(map(len, actions)),), record(frames), fill)
    in_split = np.array([name in chosen for name, labelled in zip(recordings, actions, strict=True) for _ in labelled])
    rows = np.flatnonzero(in_split)
    lengths = clips["length"][rows].astype(np.int64)
    if not lengths.all():
        warnings.warn(f"left out {(lengths == 0).sum()} of {len(rows)} actions, which show no body", stacklevel=2)
        rows, lengths = rows[lengths > 0], lengths[lengths > 0]
    if not len(rows):
        raise ValueError(f"folder: expected actions of {benchmark}, {split} split, found none in {folder}")
    labels = torch.tensor([action.label for labelled in actions for action in labelled])[rows]
    class_names = tuple(f"A{action:02d}" for action in range(1, NUM_CLASSES + 1))
    kept = torch.from_numpy(clips["clip"][rows])
    return SkeletonDataset(kept, labels, "ntu", class_names, torch.from_numpy(lengths))
