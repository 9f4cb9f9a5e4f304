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


@dataclass(frozen=True)
class _Split:
    """What differs between the splits: cameras (degrees about the vertical axis), and the stream of random numbers."""

    stream: int
    num_subjects: int
    cameras: tuple[float, ...]
    clips_per_class: int


_SPLITS = {
    "train": _Split(0, 24, (-45.0, 0.0, 45.0), 100),
    "test": _Split(1, 12, (-22.5, 22.5), 40),
}


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Matrices (..., 3, 3) that turn about y, then x, then z by angles (..., 3) = (x, y, z) in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.moveaxis(np.cos(angles), -1, 0), np.moveaxis(np.sin(angles), -1, 0)
    rows = (
        (cz * cy - sz * sx * sy, -sz * cx, cz * sy + sz * sx * cy),
        (sz * cy + cz * sx * sy, cz * cx, sz * sy - cz * sx * cy),
        (-cx * sy, sx, cx * cy),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _pose(angles: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Forward kinematics: joint angles (n, T, 25, 3) and bone offsets (n, 25, 3) to joints (n, T, 25, 3), with the
    lowest foot on the floor, y = 0."""
    turned = {}
    joints = np.zeros_like(angles)
    for joint, (parent, _) in _BONES.items():
        local = _rotation(angles[:, :, joint]) if joint in _JOINTS.values() else None
        if joint == parent:
            turned[joint] = local
            continue
        joints[:, :, joint] = joints[:, :, parent] + np.einsum("ntij,nj->nti", turned[parent], offsets[:, joint])
        turned[joint] = turned[parent] if local is None else turned[parent] @ local
    joints[..., 1] -= joints[:, :, _FEET, 1].min(2)[..., None]
    return joints


def _idle(random: np.random.Generator, clips: int, time: np.ndarray) -> np.ndarray:
    """Slow small movements of every joint, (n, T, 25, 3) radians."""
    size = (clips, 1, len(_BONES), 3)
    frequency, phase = random.uniform(0.3, 1.5, size), random.uniform(0, 2 * np.pi, size)
    return random.normal(0, 0.07, size) * np.sin(2 * np.pi * frequency * time[:, :, None, None] + phase)


def _bodies(
    random: np.random.Generator, moves: Sequence[Move], subjects: np.ndarray, habits: np.ndarray, timing: dict, frames: int
) -> np.ndarray:
    """One body per clip, (n, T, 25, 3) metres, upright at the origin and facing -z."""
    clips = len(subjects)
    time = np.linspace(0, 1, frames)[None]
    u = np.clip((time - timing["start"]) / timing["duration"], 0, 1)
    angles = _idle(random, clips, time) + habits[:, None]
    lift = np.zeros((clips, frames))
    reach = timing["reach"]
    for move in moves:
        curve = CURVES[move.curve](u, time, timing["cycles"], timing["phase"])
        change = move.angle * reach * random.lognormal(0, 0.15, (clips, 1)) * curve
        if move.joint == "lift":
            lift += change
        else:
            angles[:, :, _JOINTS[move.joint], "xyz".index(move.axis)] += change
    stance = random.integers(0, len(STANCES), clips)
    for number, posture in enumerate(STANCES):
        for move in posture:
            angles[stance == number, :, _JOINTS[move.joint], "xyz".index(move.axis)] += move.angle
    joints = _pose(angles, subjects)
    joints[..., 1] += lift[..., None]
    return joints


def _subjects(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Bone offsets (count, 25, 3) in metres and habitual joint angles (count, 25, 3) in radians."""
    rest = np.array([_BONES[joint][1] for joint in range(len(_BONES))])
    side = random.lognormal(0, 0.08, (count, len(_BONES), 1))
    symmetric = (side + side[:, list(_LAYOUT.flip)]) / 2
    offsets = rest * symmetric * random.uniform(0.8, 1.15, (count, 1, 1))
    return offsets, random.normal(0, 0.06, (count, len(_BONES), 3))


def _hide(random: np.random.Generator, joints: np.ndarray, noise: float, occlusion: float) -> np.ndarray:
    """Sensor noise, and with probability `occlusion` a body part that for a while stands still or shakes."""
    clips, frames = joints.shape[:2]
    part = np.zeros((clips, len(_BONES)), bool)
    for row, number in enumerate(random.integers(0, len(_LAYOUT.parts), clips)):
        part[row, list(_LAYOUT.parts[number])] = True
    first = random.integers(0, frames, (clips, 1))
    last = first + random.integers(frames // 8, frames // 2 + 1, (clips, 1))
    frame = np.arange(frames)
    during = (frame >= first) & (frame < last) & (random.random((clips, 1)) < occlusion)
    hidden = during[:, :, None] & part[:, None]
    freezes = random.random((clips, 1, 1)) < 0.5
    source = np.where(hidden & freezes, first[:, :, None], frame[None, :, None])
    joints = np.take_along_axis(joints, source[..., None], 1)
    strength = np.where(hidden & ~freezes, 6 * noise, noise)
    return joints + strength[..., None] * random.normal(size=joints.shape)


def _turn(joints: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Rotate about the vertical axis by yaw (n,) radians."""
    angles = np.zeros((len(yaw), 3))
    angles[:, 1] = yaw
    return np.einsum("nij,ntvj->ntvi", _rotation(angles), joints)


def _draw_class(
    random: np.random.Generator, name: str, clips: int, split: _Split, people: tuple[np.ndarray, np.ndarray], frames: int
) -> Iterator[np.ndarray]:
    """The bodies of one class, each (n, T, 25, 3) in the camera's space before noise."""
    duration = random.uniform(0.4, 0.95, (clips, 1))
    timing = {
        "duration": duration,
        "start": random.uniform(0, 1, (clips, 1)) * (1 - duration),
        "cycles": random.uniform(1.5, 5, (clips, 1)),
        "phase": random.uniform(0, 2 * np.pi, (clips, 1)),
        "reach": random.lognormal(0, 0.2, (clips, 1)),
    }
    left_handed = random.random(clips) < 0.4
    camera = random.choice(split.cameras, clips) + random.uniform(-12, 12, clips)
    place = np.stack([random.normal(0, 0.3, clips), random.normal(-0.8, 0.1, clips), random.uniform(2, 4, clips)], -1)
    pair = TWO_BODY.get(name)
    for index, moves in enumerate(pair or (ONE_BODY[name],)):
        who = random.integers(0, split.num_subjects, clips)
        joints = _bodies(random, moves, people[0][who], people[1][who], timing, frames)
        joints[left_handed] = joints[left_handed][:, :, list(_LAYOUT.flip)] * (-1, 1, 1)
        turn = random.normal(0, 0.15, clips)
        if pair:
            # Each faces the middle from half a metre away.
            side = 1 - 2 * index
            joints = _turn(joints, turn - side * np.pi / 2)
            joints[..., 0] -= side * 0.5
            turn = np.zeros(clips)
        yield _turn(joints, turn + np.deg2rad(camera)) + place[:, None, None]


def load(
    split: str = "train",
    *,
    clips_per_class: int | None = None,
    frames: int = 64,
    seed: int = 0,
    noise: float = 0.01,
    occlusion: float = 0.3,
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
    for name, value, least in (("clips_per_class", count, 1), ("frames", frames, 8), ("seed", seed, 0), ("noise", noise, 0)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if not 0 <= occlusion <= 1:
        raise ValueError(f"occlusion: expected a probability, got {occlusion}")
    random = np.random.default_rng([seed, settings.stream])
    people = _subjects(random, settings.num_subjects)
    clips = np.zeros((len(CLASS_NAMES), count, 3, frames, len(_BONES), 2), np.float32)
    for label, name in enumerate(CLASS_NAMES):
        # The order of the two bodies carries no meaning, as in a recording.
        swap = random.random(count) < 0.5
        for index, joints in enumerate(_draw_class(random, name, count, settings, people, frames)):
            slot = np.where(swap, 1 - index, index) if name in TWO_BODY else np.zeros(count, int)
            seen = _hide(random, joints, noise, occlusion)
            clips[label, np.arange(count), :, :, :, slot] = seen.transpose(0, 3, 1, 2)
    raw = torch.from_numpy(clips).flatten(0, 1)
    lengths = torch.full((len(raw),), frames)
    labels = torch.arange(len(CLASS_NAMES)).repeat_interleave(count)
    return SkeletonDataset(preprocess(raw, lengths, "ntu", frames, align=align), labels, "ntu", CLASS_NAMES)
