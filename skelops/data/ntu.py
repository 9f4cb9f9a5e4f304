"""NTU RGB+D 60 and 120: Kinect v2 `.skeleton` text files, 25 joints, 60 and 120 actions.

A file SsssCcccPpppRrrrAaaa.skeleton is one recording: setup, camera, performer, replication, action. Shahroudy et al.,
NTU RGB+D, CVPR 2016; Liu et al., NTU RGB+D 120, TPAMI 2019. Files are parsed by the compiled module skelops.lib._io.
"""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache as call_once
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from .bodies import main_bodies
from .cache import cache_folder, cached_array, digest
from .dataset import SkeletonDataset
from .recipes import RECIPES, check_recipe, prepare, record

NUM_JOINTS = 25
#: Of the cache file: another number makes those of earlier versions old.
FORMAT = 2
_BLOCK = 256

_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")
# Performers, cameras and setups of the training splits, from the two papers.
_SUBJECTS_60 = frozenset((1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38))
_SUBJECTS_120 = _SUBJECTS_60 | {
    45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95,
    97, 98, 100, 103,
}  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """Which recordings belong to a benchmark, and which of them to its training split.

    Attributes:
        num_classes: actions 1 to num_classes belong to it.
        num_setups: setups 1 to num_setups belong to it.
        field: field of the file name that splits: 0 setup, 1 camera, 2 performer.
        training: values of that field in the training split.
    """

    num_classes: int
    num_setups: int
    field: int
    training: frozenset[int]


BENCHMARKS = {
    "ntu60_xsub": Benchmark(60, 17, 2, _SUBJECTS_60),
    "ntu60_xview": Benchmark(60, 17, 1, frozenset((2, 3))),
    "ntu120_xsub": Benchmark(120, 32, 2, _SUBJECTS_120),
    "ntu120_xset": Benchmark(120, 32, 0, frozenset(range(2, 33, 2))),
}


@dataclass(frozen=True)
class Recording:
    """One `.skeleton` file: a row for every body in every frame, in the order of the file.

    Attributes:
        num_frames: frames T, those without a body included.
        joints: (R, 25, 3) float32, metres in camera space.
        frames: (R,) int32, frame of each row.
        bodies: (R,) int32, index into `ids` of each row.
        ids: (P,) uint64, tracking ids in order of appearance; an id that occurs twice in a frame counts as two bodies.
    """

    num_frames: int
    joints: np.ndarray
    frames: np.ndarray
    bodies: np.ndarray
    ids: np.ndarray

    def dense(self) -> tuple[np.ndarray, np.ndarray]:
        """Joints (T, P, 25, 3) float32, zero where a body is not tracked, and presence (T, P) bool."""
        joints = np.zeros((self.num_frames, len(self.ids), NUM_JOINTS, 3), np.float32)
        present = np.zeros(joints.shape[:2], bool)
        joints[self.frames, self.bodies] = self.joints
        present[self.frames, self.bodies] = True
        return joints, present


@call_once
def _io() -> ModuleType:
    try:
        return import_module("skelops.lib._io")
    except ImportError as error:
        raise ImportError(
            "the .skeleton parser is not built; with a C++ compiler and pybind11: pip install --no-build-isolation ."
        ) from error


def parse(data: bytes, name: str = "data") -> Recording:
    """Parse the content of a `.skeleton` file.

    Raises:
        ValueError: truncated or malformed; gives `name` and the line. Values after x y z are counted, not converted.
        ImportError: the compiled parser is missing.
    """
    try:
        return Recording(*_io().parse(data))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def read(path: str | os.PathLike[str]) -> Recording:
    """Read one `.skeleton` file; errors as `parse`, with the file's name."""
    return read_files([path], 1)[0]


def read_files(paths: Sequence[str | os.PathLike[str]], num_threads: int | None = None) -> list[Recording]:
    """Read many `.skeleton` files at once, a file per thread (None: one thread per core).

    Raises:
        ValueError: some file is unreadable or malformed; gives file and line of up to ten of them.
        ImportError: the compiled parser is missing.
    """
    outcomes = _io().parse_files([os.fsencode(path) for path in paths], num_threads or os.cpu_count() or 1)
    errors = [f"{os.fspath(path)}: {outcome}" for path, outcome in zip(paths, outcomes, strict=True)
              if isinstance(outcome, str)]  # fmt: skip
    _raise_all(errors)
    return [Recording(*outcome) for outcome in outcomes]


def _raise_all(errors: Sequence[str]) -> None:
    if errors:
        more = f"\nand {len(errors) - 10} more files" if len(errors) > 10 else ""
        raise ValueError("\n".join(errors[:10]) + more)


def _load_names(missing: str | os.PathLike[str] | Collection[str] | None) -> set[str]:
    if missing is None:
        return set()
    lines: Iterable[str] = missing if not isinstance(missing, str | os.PathLike) else Path(missing).read_text().split()
    return {line.removesuffix(".skeleton") for line in lines}


def _fields(file: Path) -> tuple[int, ...]:
    """Setup, camera, performer, replication, action."""
    match = _NAME.fullmatch(file.stem)
    if not match:
        raise ValueError(f"{file}: expected a name SsssCcccPpppRrrrAaaa.skeleton")
    return tuple(int(number) for number in match.groups())


def _read_block(files: Sequence[Path], recipe: str, frames: int | None, align: bool) -> tuple[Tensor, Tensor]:
    bodies = RECIPES[recipe].bodies if recipe in RECIPES else main_bodies
    clips = [bodies(recording) for recording in read_files(files)]
    _raise_all([f"{file}: no body in any frame; name the recording in `missing` to leave it out"
                for file, clip in zip(files, clips, strict=True) if not len(clip)])  # fmt: skip
    return prepare([torch.from_numpy(clip).permute(3, 0, 2, 1) for clip in clips], recipe, frames, align)


def load(
    folder: str | os.PathLike[str],
    benchmark: str = "ntu60_xsub",
    split: str = "train",
    *,
    frames: int | None = 64,
    recipe: str = "resize",
    align: bool = True,
    missing: str | os.PathLike[str] | Collection[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> SkeletonDataset:
    """The set as one tensor (N, 3, frames, 25, 2): `main_bodies` of each file (with recipe "sds_cl" `standing_bodies`),
    prepared by a recipe.

    The first call parses every recording of the benchmark, both splits, into one memory-mapped file in the cache
    folder (38 kB a clip at 64 frames, 180 kB a whole one).

    Args:
        folder: folder of the `.skeleton` files; those of other setups and actions than the benchmark's are ignored.
        benchmark: one of `BENCHMARKS`.
        split: "train" or "test".
        frames: frames T of every clip; None keeps those that each clip has and pads with zeros to 300, so that the
            training split of NTU-60 takes 7 GB of memory.
        recipe: "resize", which is `transforms.preprocess` (centred on joint 21 per frame and body, resized to
            `frames`, with `align` turned to face the camera), or "scd_net", "sds_cl" or "std_cl", which prepare clips
            as these methods do (`skelops.data.recipes`).
        missing: recordings to leave out: their names, or a text file of names such as the one published with the set
            (302 recordings of NTU-60, 535 of NTU-120, whose skeletons are missing or incomplete).
        cache: folder of the cache file; None is $SKELOPS_CACHE, else ~/.cache/skelops.

    Raises:
        ValueError: bad argument, no recording left, or malformed files; names file and line.
        ImportError: the compiled parser is missing.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark: expected one of {', '.join(BENCHMARKS)}, got {benchmark!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split: expected train or test, got {split!r}")
    check_recipe(recipe)
    chosen, left_out = BENCHMARKS[benchmark], _load_names(missing)
    files, fields = [], []
    for file in sorted(Path(folder).glob("*.skeleton")):
        numbers = _fields(file)
        if file.stem not in left_out and numbers[0] <= chosen.num_setups and numbers[4] <= chosen.num_classes:
            files.append(file)
            fields.append(numbers)
    in_training = [numbers[chosen.field] in chosen.training for numbers in fields]
    rows = [row for row, training in enumerate(in_training) if training == (split == "train")]
    if not rows:
        raise ValueError(f"folder: expected .skeleton files of {benchmark}, {split} split, found none in {folder}")
    path = cache_folder(cache) / f"ntu-{digest(files, FORMAT, recipe, frames, align)}.npy"

    def fill(array: np.ndarray) -> None:
        for start in range(0, len(files), _BLOCK):
            block = slice(start, start + _BLOCK)
            clips, lengths = _read_block(files[block], recipe, frames, align)
            array["clip"][block], array["length"][block] = clips, lengths

    clips = cached_array(path, (len(files),), record(frames), fill)
    labels = torch.tensor([fields[row][4] - 1 for row in rows])
    names = tuple(f"A{action:03d}" for action in range(1, chosen.num_classes + 1))
    lengths = torch.from_numpy(clips["length"][rows].astype(np.int64))
    return SkeletonDataset(torch.from_numpy(clips["clip"][rows]), labels, "ntu", names, lengths)
