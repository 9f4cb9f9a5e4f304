"""Which bodies of a recording of NTU RGB+D make the clip: a file may hold more than two, and things taken for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .ntu import Recording

NUM_BODIES = 2


def _rows(recording: Recording) -> list[np.ndarray]:
    """The rows of every body, (R,) bool each."""
    return [recording.bodies == body for body in range(len(recording.ids))]


def _energy(joints: np.ndarray) -> float:
    """The spread of a body's joints (T, 25, 3): the sum over x, y, z of their standard deviation over its frames."""
    return joints.std((0, 1)).sum()


def _empty(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """A clip (T, 2, 25, 3) of zeros, and which of its places are taken, (T, 2)."""
    places = recording.num_frames, NUM_BODIES
    return np.zeros((*places, *recording.joints.shape[1:]), np.float32), np.zeros(places, bool)


def main_bodies(recording: Recording) -> np.ndarray:
    """The two most energetic bodies, (T', 2, 25, 3) float32, of the T' frames that track one of them.

    Energy is the spread of a body's joints: the sum over x, y, z of their standard deviation over its frames, as in
    ST-GCN's reader. Bodies are laid out in order of energy, each on the first of two tracks that is free in all its
    frames: a person whom the sensor lost and found again under a new id stays on one track. An empty place is zero.
    """
    bodies = _rows(recording)
    energy = np.array([_energy(recording.joints[rows]) for rows in bodies])
    clip, taken = _empty(recording)
    for body in np.argsort(-energy, kind="stable"):
        rows = bodies[body]
        frames = recording.frames[rows]
        for track in range(NUM_BODIES):
            if not taken[frames, track].any():
                clip[frames, track] = recording.joints[rows]
                taken[frames, track] = True
                break
    return clip[taken.any(1)]


def standing_bodies(recording: Recording) -> np.ndarray:
    """The two most energetic bodies, (T', 2, 25, 3) float32, without what looks like none, of the T' frames that track
    one of them, each on a track of its own.

    Energy is that of joints relative to the base of the spine. A body with less than 0.85 of the largest is left out
    where it is lying in its first frame: where 0.8 of its height (along y) is not more than its width (along x). As
    DSTA-Net's ``prepare/ntu_60/gendata.py``, of which SDS-CL is a fork.
    """
    rows = _rows(recording)
    energy = np.array([_energy(recording.joints[of] - recording.joints[of, :1]) for of in rows])

    def lies(joints: np.ndarray) -> bool:
        width, height, _ = np.ptp(joints[0], axis=0)
        return 0.8 * height <= width

    kept = [
        of
        for of, its_energy in sorted(zip(rows, energy, strict=True), key=lambda body: -body[1])
        if its_energy >= 0.85 * energy.max() or not lies(recording.joints[of])
    ]
    clip, taken = _empty(recording)
    for track, of in enumerate(kept[:NUM_BODIES]):
        clip[recording.frames[of], track] = recording.joints[of]
        taken[recording.frames[of], track] = True
    return clip[taken.any(1)]
