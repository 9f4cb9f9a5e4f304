"""The action classes of the synthetic set, as tables of joint rotations over time."""

from typing import NamedTuple

import numpy as np


class Move(NamedTuple):
    """Rotate `joint` about `axis` by `angle` radians times the curve.

    Axes are the body's: x to its right, y up, z backwards. About x a positive angle lifts a hanging limb to the front
    and leans the trunk back (the waist takes the legs along); about z it lifts the right arm or leg to the side.
    "lift y" is no rotation but a height in metres.
    """

    joint: str
    axis: str
    curve: str
    angle: float


# Values of a curve at clip time t (1, T) for motions with (n, 1) parameters: u runs from 0 to 1 during the motion.
CURVES = {
    "always": lambda u, t, cycles, phase: np.ones_like(u),
    "hold": lambda u, t, cycles, phase: _ramp(u),
    "pulse": lambda u, t, cycles, phase: np.sin(np.pi * u) ** 2,
    "strike": lambda u, t, cycles, phase: np.sin(np.pi * u**2.5) ** 2,
    "windup": lambda u, t, cycles, phase: np.sin(np.pi * np.sqrt(u)) ** 2,
    "swing": lambda u, t, cycles, phase: _ramp(u) * np.sin(2 * np.pi * cycles * u + phase),
    "step": lambda u, t, cycles, phase: np.sin(2 * np.pi * cycles * t + phase),
    "step_up": lambda u, t, cycles, phase: np.maximum(np.sin(2 * np.pi * cycles * t + phase), 0),
    "step_down": lambda u, t, cycles, phase: np.maximum(-np.sin(2 * np.pi * cycles * t + phase), 0),
}


def _ramp(u: np.ndarray) -> np.ndarray:
    """Up during the first quarter of the motion, down during the last."""
    edge = np.clip(np.minimum(u, 1 - u) / 0.25, 0, 1)
    return edge * edge * (3 - 2 * edge)


def _moves(text: str) -> tuple[Move, ...]:
    moves = []
    for item in text.split(","):
        joint, axis, curve, angle = item.split()
        moves.append(Move(joint, axis, curve, float(angle)))
    return tuple(moves)


# Written for the right hand; left-handed clips are mirror images. Several classes share most of their motion on purpose
# (drink, phone call; punch, throw, push; squat, jump, pick up, bow), and differ in timing or in one joint.
ONE_BODY = {
    "wave": _moves("r_shoulder z hold 1.9, r_elbow z hold 0.9, r_elbow z swing 0.5"),
    "clap": _moves(
        "r_shoulder x hold 0.7, l_shoulder x hold 0.7, r_elbow x hold 1.0, l_elbow x hold 1.0, r_shoulder y hold 0.3,"
        "l_shoulder y hold -0.3, r_shoulder y swing 0.35, l_shoulder y swing -0.35"
    ),
    "drink": _moves("r_shoulder x pulse 1.1, r_shoulder y pulse 0.6, r_elbow x pulse 2.2, neck x strike 0.35"),
    "phone call": _moves("r_shoulder x hold 0.8, r_shoulder z hold 0.5, r_elbow x hold 2.4, neck z hold -0.2"),
    "throw": _moves(
        "r_shoulder z windup 1.2, r_shoulder x windup -0.5, r_elbow x windup 1.4, r_shoulder x strike 1.6,"
        "spine y windup -0.4, spine y strike 0.4"
    ),
    "punch": _moves("r_shoulder x strike 1.5, r_elbow x hold 1.6, r_elbow x strike -1.4, spine y strike 0.4"),
    "kick": _moves("r_hip x strike 1.2, r_knee x windup -1.1, r_knee x strike 0.3, spine x strike 0.2"),
    "march": _moves(
        "r_hip x step_up 0.9, r_knee x step_up -1.1, l_hip x step_down 0.9, l_knee x step_down -1.1,"
        "r_shoulder x step -0.4, l_shoulder x step 0.4"
    ),
    "jump": _moves(
        "r_hip x windup 0.8, l_hip x windup 0.8, r_knee x windup -1.4, l_knee x windup -1.4, spine x windup -0.4,"
        "r_shoulder x strike 1.2, l_shoulder x strike 1.2, lift y strike 0.3"
    ),
    "squat": _moves(
        "r_hip x pulse 1.3, l_hip x pulse 1.3, r_knee x pulse -1.9, l_knee x pulse -1.9, spine x pulse -0.5,"
        "r_shoulder x pulse 1.2, l_shoulder x pulse 1.2"
    ),
    "bow": _moves(
        "waist x pulse -0.6, r_hip x pulse 0.6, l_hip x pulse 0.6, spine x pulse -0.4, r_shoulder x pulse 0.4,"
        "l_shoulder x pulse 0.4"
    ),
    "pick up": _moves(
        "waist x pulse -0.6, spine x pulse -0.4, r_hip x pulse 1.2, l_hip x pulse 1.2, r_knee x pulse -0.9,"
        "l_knee x pulse -0.9, r_shoulder x pulse 1.0, l_shoulder x pulse 0.3"
    ),
}

# Motions of the two bodies, which face each other.
TWO_BODY = {
    "push": (
        _moves("r_shoulder x strike 1.4, l_shoulder x strike 1.4, r_elbow x hold 1.2, l_elbow x hold 1.2,"
               "r_elbow x strike -1.1, l_elbow x strike -1.1, waist x strike -0.25"),
        _moves("waist x strike 0.4, r_hip x strike -0.4, r_knee x strike -0.5, r_shoulder z strike 0.5,"
               "l_shoulder z strike -0.5"),
    ),
    "handshake": (
        _moves("r_shoulder x hold 0.7, r_elbow x hold 0.6, r_elbow x swing 0.25"),
        _moves("r_shoulder x hold 0.7, r_elbow x hold 0.6, r_elbow x swing 0.25"),
    ),
    "high five": (
        _moves("r_shoulder x pulse 2.2, r_elbow x hold 0.6, r_elbow x strike -0.3"),
        _moves("r_shoulder x pulse 2.2, r_elbow x hold 0.6, r_elbow x strike -0.3"),
    ),
}  # fmt: skip

# Ways to stand that say nothing about the action.
STANCES = (
    (),
    _moves("l_shoulder z always -0.6, l_elbow x always 1.5, l_shoulder y always -0.9"),
    _moves("l_shoulder x always 0.5, l_elbow x always 1.4"),
    _moves("r_hip z always 0.25, l_hip z always -0.25"),
    _moves("r_hip x always 0.35, r_knee x always -0.6, l_hip x always 0.35, l_knee x always -0.6"),
)
