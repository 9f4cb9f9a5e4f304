"""Northwestern-UCLA Multiview Action3D: 10 actions, 10 subjects, 3 views, 20 joints; one JSON file per clip.

A file aAA_sSS_eEE_vVV.json (action, subject, repetition, view) holds {"file_name", "label", "skeletons"}, the last
being frames x 20 joints x (x, y, z) in metres of the camera's space. Wang et al., Cross-view Action Modeling,
Learning and Recognition, CVPR 2014; JSON files as in the CTR-GCN release.
"""

import json
import os
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .cache import cache_folder, digest, new_array, open_array
from .dataset import SkeletonDataset
from .transforms import center_start, pad, preprocess, uniform_frames, unit_box

ACTIONS = (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)
CLASS_NAMES = (
    "pick up with one hand", "pick up with two hands", "drop trash", "walk around", "sit down", "stand up",
    "donning", "doffing", "throw", "carry",
)  # fmt: skip
SPLIT_VIEWS = {"train": (1, 2), "test": (3,)}
NUM_JOINTS = 20
SPINE = 1
#: Of the cache file: another number makes those of earlier versions old.
FORMAT = 1

_NAME = re.compile(r"a(\d\d)_s(\d\d)_e(\d\d)_v(\d\d)\.json")
# One record per frame, so that a single .npy holds clips of all lengths; `clip` counts the sorted file names.
_FRAME = np.dtype([("clip", "<i4"), ("joints", "<f4", (NUM_JOINTS, 3))])


def _name_numbers(path: Path) -> tuple[int, int, int]:
    """(class, subject, view) from a file name."""
    match = _NAME.fullmatch(path.name)
    if not match or int(match[1]) not in ACTIONS:
        raise ValueError(f"{path}: expected a name aAA_sSS_eEE_vVV.json with an action of {ACTIONS}")
    return ACTIONS.index(int(match[1])), int(match[2]), int(match[4])


def _joint_array(skeletons: object, path: Path) -> np.ndarray:
    """(T, 20, 3) float64, or an error that names the first odd frame."""
    if not isinstance(skeletons, list) or not skeletons:
        raise ValueError(f'{path}: expected a non-empty list under "skeletons"')
    for frame, joints in enumerate(skeletons):
        try:
            array = np.asarray(joints)
        except ValueError:
            array = np.empty(0)
        if array.shape != (NUM_JOINTS, 3) or array.dtype.kind not in "fi":
            raise ValueError(f"{path}: frame {frame}: expected {NUM_JOINTS} joints x 3 numbers")
    return np.asarray(skeletons, dtype=np.float64)


def read_clip(path: str | os.PathLike[str]) -> tuple[np.ndarray, bool]:
    """Read one JSON clip: joints (T, 20, 3) float32 in metres, T >= 1, and whether it was repaired.

    A joint that is NaN or exactly (0, 0, 0), the camera itself, was not tracked in that frame (two clips of the
    released set have such frames): it is interpolated linearly over time, or taken from the nearest frame at the ends.

    Raises:
        ValueError: broken JSON, no frame, wrong number of joints, non-numeric or infinite values, a joint that is
            tracked in no frame, or a label that contradicts the file name; names the file and the frame.
    """
    path = Path(path)
    label = _name_numbers(path)[0] + 1
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: broken JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    if content.get("label", label) != label:
        raise ValueError(f"{path}: label {content['label']} contradicts the file name (expected {label})")
    joints = _joint_array(content.get("skeletons"), path)
    infinite = (np.abs(joints) > np.finfo(np.float32).max).any((1, 2))
    if infinite.any():
        raise ValueError(f"{path}: frame {infinite.argmax()}: infinite value")
    missing = np.isnan(joints).any(2) | (joints == 0).all(2)
    for joint in np.flatnonzero(missing.any(0)):
        tracked = np.flatnonzero(~missing[:, joint])
        if not len(tracked):
            raise ValueError(f"{path}: joint {joint} is tracked in no frame")
        for axis in range(3):
            joints[:, joint, axis] = np.interp(np.arange(len(joints)), tracked, joints[tracked, joint, axis])
    return joints.astype(np.float32), bool(missing.any())


def _read_frames(files: Sequence[Path]) -> np.ndarray:
    """The frames of every readable clip."""
    repaired: list[str] = []
    records = [np.empty(0, _FRAME)]
    for index, file in enumerate(files):
        try:
            joints, was_repaired = read_clip(file)
        except ValueError:
            continue
        record = np.empty(len(joints), _FRAME)
        record["clip"], record["joints"] = index, joints
        records.append(record)
        if was_repaired:
            repaired.append(file.name)
    if repaired:
        warnings.warn(f"untracked joints interpolated over time in {', '.join(repaired)}", stacklevel=5)
    return np.concatenate(records)


def _open_frames(files: Sequence[Path], cache: str | os.PathLike[str] | None) -> np.ndarray:
    """The frames of every readable clip, memory-mapped; written first where the cache has none or older ones."""
    path = cache_folder(cache) / f"nw_ucla-{digest(files, FORMAT, _FRAME.descr)}.npy"
    frames = open_array(path, _FRAME)
    if frames is None:
        frames = _read_frames(files)
        if len(frames):
            with new_array(path, frames.shape, _FRAME) as array:
                array[:] = frames
    return frames


def _errors(files: Sequence[Path]) -> Iterator[ValueError]:
    for file in files:
        try:
            read_clip(file)
        except ValueError as error:
            yield error


class NWUCLA(Dataset[tuple[Tensor, int, int]]):
    """Raw clips of different lengths; items are (clip (3, T, 20, 1) float32 in metres, label, index).

    The JSON files are read once, into one memory-mapped file in the cache folder; it is written anew when a name, size
    or modification time in the folder changes.

    Args:
        folder: folder of the JSON files; files of other types are ignored.
        split: "train" (views 1 and 2), "test" (view 3) or None (all views).
        views: views to keep, instead of those of `split`.
        subjects: subjects to keep; None keeps all.
        on_error: what a clip that `read_clip` refuses does: "raise", or "skip" it with a warning that lists all.
        cache: folder of the cache file; None is $SKELOPS_CACHE, else ~/.cache/skelops.

    Raises:
        ValueError: bad argument, no clip left, or (with on_error="raise") a bad file; names the file.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str | None = "train",
        *,
        views: Collection[int] | None = None,
        subjects: Collection[int] | None = None,
        on_error: str = "raise",
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        if split is not None and split not in SPLIT_VIEWS:
            raise ValueError(f"split: expected train, test or None, got {split!r}")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error: expected raise or skip, got {on_error!r}")
        if views is None and split is not None:
            views = SPLIT_VIEWS[split]
        files = sorted(Path(folder).glob("*.json"))
        if not files:
            raise ValueError(f"folder: expected a folder of JSON files, found none in {folder}")
        self.frames = _open_frames(files, cache)
        counts = np.bincount(self.frames["clip"], minlength=len(files))
        errors = list(_errors([files[index] for index in np.flatnonzero(counts == 0)]))
        if errors and on_error == "raise":
            raise errors[0]
        if errors:
            skipped = "; ".join(map(str, errors))
            warnings.warn(f"skipped {len(errors)} of {len(files)} files: {skipped}", stacklevel=2)
        self.names: list[str] = []
        self.labels: list[int] = []
        self.ranges: list[tuple[int, int]] = []
        ends = np.cumsum(counts)
        for index in np.flatnonzero(counts):
            label, subject, view = _name_numbers(files[index])
            if (views is None or view in views) and (subjects is None or subject in subjects):
                self.names.append(files[index].stem)
                self.labels.append(label)
                self.ranges.append((int(ends[index] - counts[index]), int(ends[index])))
        if not self.names:
            raise ValueError(f"no clip of views {views} and subjects {subjects} in {folder}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        start, end = self.ranges[index]
        joints = torch.from_numpy(np.array(self.frames["joints"][start:end]))
        return joints.permute(2, 0, 1)[..., None].contiguous(), self.labels[index], index


def load(
    folder: str | os.PathLike[str],
    split: str | None = "train",
    *,
    views: Collection[int] | None = None,
    subjects: Collection[int] | None = None,
    frames: int | None = 64,
    recipe: str = "resize",
    align: bool = True,
    scale: bool = False,
    on_error: str = "raise",
    cache: str | os.PathLike[str] | None = None,
) -> SkeletonDataset:
    """The set as one tensor (N, 3, frames, 20, 1): clips as in `NWUCLA`, prepared by a recipe.

    Args:
        frames: frames T of every clip; None keeps those that each clip has and pads with zeros.
        recipe: "resize", which is `transforms.preprocess` (centred on the shoulder centre per frame, resized to
            `frames`, with `align` turned to face the camera, with `scale` divided by the mean bone length); or
            "ctr_gcn", the test clips of CTR-GCN's feeder (centred on the spine of the first frame, `unit_box`,
            `uniform_frames`). With frames None the latter is centred only: the rest follows random views.

    The other arguments and the errors are those of `NWUCLA`.
    """
    if recipe not in ("resize", "ctr_gcn"):
        raise ValueError(f"recipe: expected resize or ctr_gcn, got {recipe!r}")
    raw = NWUCLA(folder, split, views=views, subjects=subjects, on_error=on_error, cache=cache)
    clips, lengths = pad([raw[index][0] for index in range(len(raw))])
    if recipe == "resize":
        clips = preprocess(clips, lengths, "nw_ucla", frames, align=align, scale=scale)
    else:
        clips = center_start(clips, SPINE)
        if frames is not None:
            clips = uniform_frames(unit_box(clips), lengths, frames)
    labels = torch.tensor(raw.labels)
    if frames is not None:
        return SkeletonDataset(clips, labels, "nw_ucla", CLASS_NAMES)
    return SkeletonDataset(clips, labels, "nw_ucla", CLASS_NAMES, lengths)
