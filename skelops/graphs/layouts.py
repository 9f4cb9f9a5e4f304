"""Joint layouts: which joints a skeleton has and how they hang together."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

_TRUNK_ARMS_LEGS = ("trunk", "right arm", "left arm", "right leg", "left leg")


@dataclass(frozen=True)
class Layout:
    """A skeleton layout; all joint numbers are 0-based.

    Attributes:
        name: name by which `get_layout` finds it.
        joint_names: one name per joint.
        edges: (child, parent) pairs of the tree; every joint but `center` is a child exactly once.
        center: root of the tree, the joint that preprocessing subtracts.
        shoulders: (left, right) shoulder joints.
        flip: permutation that swaps left and right joints.
        parts: joints of the five body parts: trunk with head, right arm, left arm, right leg, left leg.
    """

    name: str
    joint_names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    center: int
    shoulders: tuple[int, int]
    flip: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]
    part_names: tuple[str, ...] = _TRUNK_ARMS_LEGS

    @property
    def num_joints(self) -> int:
        """Number of joints V."""
        return len(self.joint_names)

    @property
    def parents(self) -> tuple[int, ...]:
        """Parent of every joint; the center is its own parent."""
        parent_of = dict(self.edges)
        return tuple(parent_of.get(joint, joint) for joint in range(self.num_joints))

    def stored(self) -> str | dict[str, Any]:
        """What `get_layout` finds the same layout by, in plain types: its name where it is one of `LAYOUTS`, else its
        fields."""
        return self.name if LAYOUTS.get(self.name) == self else asdict(self)


# Kinect v2, the 24 edges of the 2s-AGCN graph: the hand tips hang on the thumbs (22-23-8, 24-25-12, 1-based).
_NTU = Layout(
    name="ntu",
    joint_names=(
        "base of spine", "middle of spine", "neck", "head",
        "left shoulder", "left elbow", "left wrist", "left hand",
        "right shoulder", "right elbow", "right wrist", "right hand",
        "left hip", "left knee", "left ankle", "left foot",
        "right hip", "right knee", "right ankle", "right foot",
        "spine", "tip of left hand", "left thumb", "tip of right hand", "right thumb",
    ),
    edges=(
        (0, 1), (1, 20), (2, 20), (3, 2),
        (4, 20), (5, 4), (6, 5), (7, 6), (8, 20), (9, 8), (10, 9), (11, 10),
        (12, 0), (13, 12), (14, 13), (15, 14), (16, 0), (17, 16), (18, 17), (19, 18),
        (21, 22), (22, 7), (23, 24), (24, 11),
    ),
    center=20,
    shoulders=(4, 8),
    flip=(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 20, 23, 24, 21, 22),
    parts=(
        (0, 1, 2, 3, 20), (8, 9, 10, 11, 23, 24), (4, 5, 6, 7, 21, 22), (16, 17, 18, 19), (12, 13, 14, 15),
    ),
)  # fmt: skip

# Kinect v1.
_NW_UCLA = Layout(
    name="nw_ucla",
    joint_names=(
        "hip center", "spine", "shoulder center", "head",
        "left shoulder", "left elbow", "left wrist", "left hand",
        "right shoulder", "right elbow", "right wrist", "right hand",
        "left hip", "left knee", "left ankle", "left foot",
        "right hip", "right knee", "right ankle", "right foot",
    ),
    edges=(
        (0, 1), (1, 2), (3, 2),
        (4, 2), (5, 4), (6, 5), (7, 6), (8, 2), (9, 8), (10, 9), (11, 10),
        (12, 0), (13, 12), (14, 13), (15, 14), (16, 0), (17, 16), (18, 17), (19, 18),
    ),
    center=2,
    shoulders=(4, 8),
    flip=(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15),
    parts=((0, 1, 2, 3), (8, 9, 10, 11), (4, 5, 6, 7), (16, 17, 18, 19), (12, 13, 14, 15)),
)  # fmt: skip

_COCO = Layout(
    name="coco",
    joint_names=(
        "nose", "left eye", "right eye", "left ear", "right ear",
        "left shoulder", "right shoulder", "left elbow", "right elbow", "left wrist", "right wrist",
        "left hip", "right hip", "left knee", "right knee", "left ankle", "right ankle",
    ),
    edges=(
        (1, 0), (2, 0), (3, 1), (4, 2),
        (5, 0), (6, 0), (7, 5), (8, 6), (9, 7), (10, 8),
        (11, 5), (12, 6), (13, 11), (14, 12), (15, 13), (16, 14),
    ),
    center=0,
    shoulders=(5, 6),
    flip=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    parts=((0, 1, 2, 3, 4), (6, 8, 10), (5, 7, 9), (12, 14, 16), (11, 13, 15)),
)  # fmt: skip

_OPENPOSE = Layout(
    name="openpose",
    joint_names=(
        "nose", "neck",
        "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
        "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
        "right eye", "left eye", "right ear", "left ear",
    ),
    edges=(
        (0, 1), (2, 1), (3, 2), (4, 3), (5, 1), (6, 5), (7, 6),
        (8, 2), (9, 8), (10, 9), (11, 5), (12, 11), (13, 12),
        (14, 0), (15, 0), (16, 14), (17, 15),
    ),
    center=1,
    shoulders=(5, 2),
    flip=(0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16),
    parts=((0, 1, 14, 15, 16, 17), (2, 3, 4), (5, 6, 7), (8, 9, 10), (11, 12, 13)),
)  # fmt: skip

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (_NTU, _NW_UCLA, _COCO, _OPENPOSE)}


def get_layout(layout: str | Layout | Mapping[str, Any]) -> Layout:
    """Return the layout of that name (one of `LAYOUTS`; "-" and "_" are the same), `layout` itself, or that of the
    fields that `Layout.stored` gives.

    Raises:
        ValueError: unknown name; the message lists the known ones.
        TypeError: neither a name nor a `Layout` nor its fields.
    """
    if isinstance(layout, Layout):
        return layout
    if isinstance(layout, Mapping):
        return Layout(**layout)
    if not isinstance(layout, str):
        raise TypeError(f"layout: expected a name or a Layout, got {type(layout).__name__}")
    found = LAYOUTS.get(layout.lower().replace("-", "_"))
    if found is None:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    return found


def part_of_joint(layout: str | Layout) -> Tensor:
    """The body part of every joint, (V,) int64: its number in `Layout.parts`.

    Raises:
        ValueError: unknown layout.
    """
    layout = get_layout(layout)
    found = torch.empty(layout.num_joints, dtype=torch.int64)
    for number, joints in enumerate(layout.parts):
        found[list(joints)] = number
    return found
