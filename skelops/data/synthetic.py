"""A synthetic set: procedural motions of the 25-joint NTU body, drawn from a seed, for demos and tests.

Fifteen actions, three of them of two bodies. A subject has its own size, bone lengths, habits of speed, reach and
carriage; a clip has a style (which hand, stance, speed, number of repetitions, start), a camera, sensor noise, and body
parts that are frozen or shaky for a while because something hid them. The two splits have different subjects and
cameras.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..graphs import get_layout
from .dataset import SkeletonDataset
from .motions import CURVES, ONE_BODY, STANCES, TWO_BODY, Move
from .transforms import preprocess

CLASS_NAMES = (*ONE_BODY, *TWO_BODY)

# joint: (parent, offset in metres) of a standing person that faces the camera: x to the person's right, y up, z back.
_BONES = {
    0: (0, (0, 0, 0)), 1: (0, (0, 0.28, 0)), 20: (1, (0, 0.24, 0)), 2: (20, (0, 0.07, 0)), 3: (2, (0, 0.18, 0)),
    4: (20, (-0.17, -0.03, 0)), 5: (4, (0, -0.28, 0)), 6: (5, (0, -0.25, 0)), 7: (6, (0, -0.08, 0)),
    21: (7, (0, -0.08, 0)), 22: (7, (0.02, -0.04, -0.04)),
    8: (20, (0.17, -0.03, 0)), 9: (8, (0, -0.28, 0)), 10: (9, (0, -0.25, 0)), 11: (10, (0, -0.08, 0)),
    23: (11, (0, -0.08, 0)), 24: (11, (-0.02, -0.04, -0.04)),
    12: (0, (-0.09, -0.03, 0)), 13: (12, (0, -0.42, 0)), 14: (13, (0, -0.40, 0)), 15: (14, (0, -0.06, -0.13)),
    16: (0, (0.09, -0.03, 0)), 17: (16, (0, -0.42, 0)), 18: (17, (0, -0.40, 0)), 19: (18, (0, -0.06, -0.13)),
}  # fmt: skip
_JOINTS = {
    "waist": 0, "spine": 1, "neck": 2, "l_shoulder": 4, "l_elbow": 5, "r_shoulder": 8, "r_elbow": 9,
    "l_hip": 12, "l_knee": 13, "r_hip": 16, "r_knee": 17,
}  # fmt: skip
_FEET = [14, 15, 18, 19]
_LAYOUT = get_layout("ntu")


# Row of the height above the floor in an array of joint angles; see motions.Move.
_LIFT = len(_BONES)
_ROWS = _JOINTS | {"lift": _LIFT}


@dataclass(frozen=True)
class _Split:
    """What differs between the splits: the stream of random numbers, subjects, and cameras in degrees."""

    stream: int
    num_subjects: int
    cameras: tuple[float, ...]
    clips_per_class: int


_SPLITS = {
    "train": _Split(0, 24, (-45.0, 0.0, 45.0), 100),
    "test": _Split(1, 12, (-22.5, 22.5), 40),
}


class _People:
    """Subjects: bone offsets (n, 25, 3) in metres, and habitual joint angles (n, 1, 26, 3) in radians."""

    def __init__(self, random: np.random.Generator, count: int) -> None:
        rest = np.array([_BONES[joint][1] for joint in range(len(_BONES))])
        length = random.lognormal(0, 0.06, (count, len(_BONES), 1))
        symmetric = (length + length[:, list(_LAYOUT.flip)]) / 2
        self.offsets = rest * symmetric * random.uniform(0.8, 1.15, (count, 1, 1))
        self.habits = random.normal(0, 0.04, (count, 1, _LIFT + 1, 3))
        self.habits[:, :, _LIFT] = 0


class _Timing:
    """When, how often and how far each of n clips moves; every field is (n, 1)."""

    def __init__(self, random: np.random.Generator, count: int) -> None:
        self.duration = random.uniform(0.4, 0.95, (count, 1))
        self.start = random.uniform(0, 1, (count, 1)) * (1 - self.duration)
        self.cycles = random.uniform(1.5, 5, (count, 1))
        self.phase = random.uniform(0, 2 * np.pi, (count, 1))
        self.reach = random.lognormal(0, 0.12, (count, 1))

    def curves(self, time: np.ndarray) -> dict[str, np.ndarray]:
        """Every curve at clip times (1, T) from 0 to 1, each (n, T)."""
        during = np.clip((time - self.start) / self.duration, 0, 1)
        return {name: curve(during, time, self.cycles, self.phase) for name, curve in CURVES.items()}


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Matrices (..., 3, 3) that turn about y, then x, then z by angles (..., 3) = (x, y, z) in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.moveaxis(np.cos(angles), -1, 0), np.moveaxis(np.sin(angles), -1, 0)
    rows = (
        (cz * cy - sz * sx * sy, -sz * cx, cz * sy + sz * sx * cy),
        (sz * cy + cz * sx * sy, cz * cx, sz * sy - cz * sx * cy),
        (-cx * sy, sx, cx * cy),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _turn(joints: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Rotate joints (n, T, 25, 3) about the vertical axis by yaw (n,) radians."""
    matrix = _rotation(np.stack([np.zeros_like(yaw), yaw, np.zeros_like(yaw)], -1))
    return np.einsum("nij,ntvj->ntvi", matrix, joints)


def _pose(angles: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Forward kinematics: angles (n, T, 26, 3) and bone offsets (n, 25, 3) to joints (n, T, 25, 3), the lowest ankle
    or foot on the floor y = 0 unless lifted."""
    joints = np.zeros_like(angles[:, :, :_LIFT])
    turned = {0: _rotation(angles[:, :, 0])}
    for joint, (parent, _) in _BONES.items():
        if joint == 0:
            continue
        joints[:, :, joint] = joints[:, :, parent] + np.einsum("ntij,nj->nti", turned[parent], offsets[:, joint])
        turned[joint] = turned[parent]
        if joint in _JOINTS.values():
            turned[joint] = turned[parent] @ _rotation(angles[:, :, joint])
    floor = joints[:, :, _FEET, 1].min(2)
    joints[..., 1] += (angles[:, :, _LIFT, 1] - floor)[..., None]
    return joints


def _idle(random: np.random.Generator, clips: int, time: np.ndarray) -> np.ndarray:
    """Slow small movements of every joint, (n, T, 26, 3) radians."""
    size = (clips, 1, _LIFT + 1, 3)
    frequency, phase = random.uniform(0.3, 1.5, size), random.uniform(0, 2 * np.pi, size)
    angles = random.normal(0, 0.05, size) * np.sin(2 * np.pi * frequency * time[:, :, None, None] + phase)
    angles[:, :, _LIFT] = 0
    return angles


def _bodies(
    random: np.random.Generator, moves: Sequence[Move], people: _People, timing: _Timing, frames: int
) -> np.ndarray:
    """One body per clip, (n, T, 25, 3) metres, at the origin and facing -z."""
    clips = len(timing.start)
    time = np.linspace(0, 1, frames)[None]
    who = random.integers(0, len(people.offsets), clips)
    angles = _idle(random, clips, time) + people.habits[who]
    stance = random.integers(0, len(STANCES), (clips, 1)) * (random.random((clips, 1)) < 0.5)
    weights = [(moves, timing.reach)] + [(posture, stance == number) for number, posture in enumerate(STANCES)]
    curves = timing.curves(time)
    for group, weight in weights:
        for move in group:
            amount = move.angle * weight * random.lognormal(0, 0.1, (clips, 1))
            angles[:, :, _ROWS[move.joint], "xyz".index(move.axis)] += amount * curves[move.curve]
    return _pose(angles, people.offsets[who])


def _draw_class(
    random: np.random.Generator, name: str, clips: int, split: _Split, people: _People, frames: int
) -> Iterator[np.ndarray]:
    """The bodies of one class, each (n, T, 25, 3) metres in the camera's space, without noise."""
    timing = _Timing(random, clips)
    left_handed = random.random(clips) < 0.4
    camera = np.deg2rad(random.choice(split.cameras, clips) + random.uniform(-12, 12, clips))
    place = np.stack([random.normal(0, 0.3, clips), random.normal(-0.8, 0.1, clips), random.uniform(2, 4, clips)], -1)
    pair = TWO_BODY.get(name)
    for index, moves in enumerate(pair or (ONE_BODY[name],)):
        joints = _bodies(random, moves, people, timing, frames)
        joints[left_handed] = joints[left_handed][:, :, list(_LAYOUT.flip)] * (-1, 1, 1)
        joints = _turn(joints, random.normal(0, 0.15, clips))
        if pair:
            # Each stands half a metre from the middle and faces it.
            side = 2 * index - 1
            joints = _turn(joints, np.full(clips, side * np.pi / 2))
            joints[..., 0] += side * 0.5
        yield _turn(joints, camera) + place[:, None, None]


def _sense(random: np.random.Generator, joints: np.ndarray, noise: float, occlusion: float) -> np.ndarray:
    """Sensor noise, and with probability `occlusion` a body part that for a while stands still or shakes."""
    clips, frames = joints.shape[:2]
    parts = np.array([[joint in part for joint in range(len(_BONES))] for part in _LAYOUT.parts])
    first = random.integers(0, frames, (clips, 1))
    last = first + random.integers(frames // 8, frames // 2 + 1, (clips, 1))
    frame = np.arange(frames)
    during = (frame >= first) & (frame < last) & (random.random((clips, 1)) < occlusion)
    hidden = during[:, :, None] & parts[random.integers(0, len(parts), clips)][:, None]
    freezes = random.random((clips, 1, 1)) < 0.5
    source = np.where(hidden & freezes, first[:, :, None], frame[None, :, None])
    joints = np.take_along_axis(joints, source[..., None], 1)
    strength = np.where(hidden & ~freezes, 6 * noise, noise)
    return joints + strength[..., None] * random.normal(size=joints.shape)


def load(
    split: str = "train",
    *,
    clips_per_class: int | None = None,
    frames: int = 64,
    seed: int = 0,
    noise: float = 0.01,
    occlusion: float = 0.2,
    align: bool = False,
) -> SkeletonDataset:
    """The set as one tensor (N, 3, frames, 25, 2), centred on joint 21 per frame and body; equal for equal arguments.

    Args:
        split: "train" (24 subjects, cameras at -45, 0 and 45 degrees) or "test" (12 others, cameras at +-22.5).
        clips_per_class: clips of each of the fifteen classes; None is 100 for training and 40 for testing.
        frames: frames per clip, at least 8.
        seed: seed of everything.
        noise: standard deviation of the sensor noise in metres.
        occlusion: probability that a body part is hidden for an eighth to half of the clip.
        align: take the camera out again with `transforms.align_shoulders`.

    Raises:
        ValueError: an argument is out of range.
    """
    if split not in _SPLITS:
        raise ValueError(f"split: expected train or test, got {split!r}")
    settings = _SPLITS[split]
    count = settings.clips_per_class if clips_per_class is None else clips_per_class
    limits = {"clips_per_class": (count, 1), "frames": (frames, 8), "seed": (seed, 0), "noise": (noise, 0)}
    for argument, (value, least) in limits.items():
        if not value >= least:
            raise ValueError(f"{argument}: expected at least {least}, got {value}")
    if not 0 <= occlusion <= 1:
        raise ValueError(f"occlusion: expected a probability, got {occlusion}")
    random = np.random.default_rng([seed, settings.stream])
    people = _People(random, settings.num_subjects)
    clips = np.zeros((len(CLASS_NAMES), count, 3, frames, len(_BONES), 2), np.float32)
    for label, name in enumerate(CLASS_NAMES):
        # Which of two bodies comes first means nothing, as in a recording.
        swap = random.random(count) < 0.5
        for index, joints in enumerate(_draw_class(random, name, count, settings, people, frames)):
            body = np.where(swap, 1 - index, index) if name in TWO_BODY else np.zeros(count, int)
            sensed = _sense(random, joints, noise, occlusion)
            clips[label, np.arange(count), :, :, :, body] = sensed.transpose(0, 3, 1, 2)
    raw = torch.from_numpy(clips).flatten(0, 1)
    lengths = torch.full((len(raw),), frames)
    labels = torch.arange(len(CLASS_NAMES)).repeat_interleave(count)
    return SkeletonDataset(preprocess(raw, lengths, "ntu", frames, align=align), labels, "ntu", CLASS_NAMES)
