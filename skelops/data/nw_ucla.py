"""Northwestern-UCLA Multiview Action3D: 10 actions, 10 subjects, 3 views, 20 joints; one JSON file per clip.

A file aAA_sSS_eEE_vVV.json (action, subject, repetition, view) holds {"file_name", "label", "skeletons"}, the last
being frames x 20 joints x (x, y, z) in metres of the camera's space. Wang et al., Cross-view Action Modeling,
Learning and Recognition, CVPR 2014; JSON files as in the CTR-GCN release.
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .cache import cache_folder, digest, new_array, open_array
from .dataset import SkeletonDataset
from .transforms import pad, preprocess

ACTIONS = (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)
CLASS_NAMES = (
    "pick up with one hand", "pick up with two hands", "drop trash", "walk around", "sit down", "stand up",
    "donning", "doffing", "throw", "carry",
)  # fmt: skip
SPLIT_VIEWS = {"train": (1, 2), "test": (3,)}
NUM_JOINTS = 20

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
    infinite = np.isinf(joints.astype(np.float32)).any((1, 2))
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


def _read_frames(files: list[Path], report: Callable[[ValueError], None]) -> np.ndarray:
    repaired: list[str] = []
    records = [np.empty(0, _FRAME)]
    for index, file in enumerate(files):
        try:
            joints, was_repaired = read_clip(file)
        except ValueError as error:
            report(error)
            continue
        record = np.empty(len(joints), _FRAME)
        record["clip"], record["joints"] = index, joints
        records.append(record)
        if was_repaired:
            repaired.append(file.name)
    if repaired:
        warnings.warn(f"untracked joints interpolated over time in {', '.join(repaired)}", stacklevel=4)
    return np.concatenate(records)


def _frames(files: list[Path], on_error: str, cache: str | os.PathLike[str] | None) -> np.ndarray:
    """All frames as records, from the cache if it is current; with on_error="skip" unreadable clips have no record."""
    path = cache_folder(cache) / f"nw_ucla-{digest(files, _FRAME.descr, on_error)}.npy"
    frames = open_array(path)
    if frames is None:
        skipped: list[str] = []

        def report(error: ValueError) -> None:
            if on_error == "raise":
                raise error
            skipped.append(str(error))

        frames = _read_frames(files, report)
        if skipped:
            warnings.warn(f"{len(skipped)} files skipped: " + "; ".join(skipped), stacklevel=4)
        if len(frames):
            with new_array(path, frames.shape, _FRAME) as array:
                array[:] = frames
            frames = open_array(path)
    return frames
