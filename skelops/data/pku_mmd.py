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

from .cache import cache_folder, cached_array, digest
from .dataset import SkeletonDataset
from .ntu import NUM_BODIES, NUM_JOINTS
from .transforms import pad, preprocess

NUM_CLASSES = 51
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


def _clips(path: Path, actions: Sequence[Action], frames: int, align: bool) -> Tensor:
    """The actions of a recording (n, 3, frames, 25, 2); one without a body in any frame is all zeros.

    Frames without a body are left out, as of NTU RGB+D; bodies keep the places that they have in the file.
    """
    recording = read_skeleton(path)
    present = (recording != 0).any((1, 2, 3))
    absent = np.zeros((1, *recording.shape[1:]), np.float32)
    parts = [recording[start:end][present[start:end]] for _, start, end in actions]
    clips, lengths = pad([torch.from_numpy(part if len(part) else absent).permute(3, 0, 2, 1) for part in parts])
    return preprocess(clips, lengths, "ntu", frames, align=align)


def load(
    folder: str | os.PathLike[str],
    benchmark: str = "pku1_xsub",
    split: str = "train",
    *,
    frames: int = 64,
    align: bool = True,
    cache: str | os.PathLike[str] | None = None,
) -> SkeletonDataset:
    """The set as one tensor (N, 3, frames, 25, 2): a clip per labelled action, through `transforms.preprocess` (centred
    on joint 21 per frame and body, resized to `frames`, with `align` turned to face the camera).

    The first call parses every recording of the benchmark, both splits, into one memory-mapped file in the cache folder
    (38 kB a clip at 64 frames). An action without a body in any of its frames is left out, with a warning, as the
    readers of published methods do; frames past the end of a recording are none.

    Args:
        folder: folder of ``skeleton``, ``label`` and the lists of the splits.
        benchmark: one of `BENCHMARKS`; both parts have 51 classes, of which part II uses 41.
        split: "train" or "test".
        cache: folder of the cache file; None is $SKELOPS_CACHE, else ~/.cache/skelops.

    Raises:
        ValueError: bad argument, missing or malformed files; names file and line.
    """
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
    path = cache_folder(cache) / f"pku_mmd-{digest(skeletons, actions, frames, align)}.npy"

    def fill(array: np.ndarray) -> None:
        start = 0
        for file, labelled in zip(skeletons, actions, strict=True):
            if labelled:
                array[start : start + len(labelled)] = _clips(file, labelled, frames, align).numpy()
            start += len(labelled)

    shape = (sum(map(len, actions)), 3, frames, NUM_JOINTS, NUM_BODIES)
    clips = cached_array(path, shape, np.float32, fill)
    in_split = [name in chosen for name, labelled in zip(recordings, actions, strict=True) for _ in labelled]
    kept = torch.from_numpy(clips[np.array(in_split, bool)])
    labels = torch.tensor([action.label for labelled in actions for action in labelled])[torch.tensor(in_split)]
    present = kept.flatten(1).any(1)
    if not present.all():
        warnings.warn(f"left out {int((~present).sum())} of {len(kept)} actions, which show no body", stacklevel=2)
        kept, labels = kept[present], labels[present]
    if not len(kept):
        raise ValueError(f"folder: expected actions of {benchmark}, {split} split, found none in {folder}")
    class_names = tuple(f"A{action:02d}" for action in range(1, NUM_CLASSES + 1))
    return SkeletonDataset(kept, labels, "ntu", class_names)
