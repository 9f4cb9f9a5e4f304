"""Writes NTU RGB+D .skeleton text, for tests and benchmarks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

FIRST_ID = 72057594037931101


def skeleton_text(
    frames: Sequence[Sequence[tuple[int, np.ndarray]]], fields: int = 12, newline: str = "\r\n", seed: int = 0
) -> str:
    """Text of a recording: for each frame its bodies as (tracking id, joints (25, 3)).

    `fields` is 12, or 11 without the tracking state. The values that no reader here uses (image coordinates,
    orientation, hand states) have the ranges and the number of digits of a Kinect recording.
    """
    random = np.random.default_rng(seed)
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for body_id, joints in bodies:
            lines.append(f"{body_id} 0 1 1 1 1 0 {random.normal(0, 0.1):.7g} {random.normal(0, 0.1):.7g} 2")
            lines.append(str(len(joints)))
            rest = random.normal(0, 0.5, (len(joints), 4))
            for (x, y, z), orientation in zip(joints.tolist(), rest.tolist(), strict=True):
                image = (366 * x / z + 256, 212 - 366 * y / z, 1060 * x / z + 960, 540 - 1060 * y / z)
                values = [f"{value:.7g}" for value in (x, y, z, *image, *orientation)]
                lines.append(" ".join([*values, "2"][:fields]))
    return newline.join([*lines, ""])


def random_frames(num_frames: int, bodies: Sequence[range], seed: int = 0) -> list[list[tuple[int, np.ndarray]]]:
    """Frames in which body i, a random walk about a standing pose, is tracked during the range `bodies[i]`."""
    random = np.random.default_rng(seed)
    frames: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(num_frames)]
    for index, tracked in enumerate(bodies):
        joints = random.normal((index - 0.5, 0, 3), (0.2, 0.5, 0.1), (25, 3))
        for frame in tracked:
            joints = joints + random.normal(0, 0.01 * (index + 1), joints.shape)
            frames[frame].append((FIRST_ID + index, joints))
    return frames


def write_recording(path: Path, num_frames: int, bodies: Sequence[range], seed: int = 0, fields: int = 12) -> None:
    """Write a file of `random_frames`."""
    path.write_text(skeleton_text(random_frames(num_frames, bodies, seed), fields, seed=seed), newline="")
