"""The common form of every data set: one tensor of clips, one of labels."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..graphs import get_layout


@dataclass
class SkeletonDataset(Dataset[tuple[Tensor, Tensor, int, Tensor]]):
    """Preprocessed clips, held as one tensor; items are (clip, label, index, length).

    Attributes:
        clips: (N, 3, T, V, M) float32; an absent body is all zeros, and so is what follows a clip shorter than T.
        labels: (N,) int64, classes counted from 0.
        layout: name of the joint layout.
        class_names: one name per class.
        lengths: (N,) int64, frames of every clip; T where none are given.

    Raises:
        ValueError: shapes, dtypes, labels and layout do not fit together.
    """

    clips: Tensor
    labels: Tensor
    layout: str
    class_names: tuple[str, ...]
    lengths: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        joints = get_layout(self.layout).num_joints
        if self.clips.dim() != 5 or self.clips.shape[1] != 3 or self.clips.shape[3] != joints:
            raise ValueError(f"clips: expected shape (N, 3, T, {joints}, M), got {tuple(self.clips.shape)}")
        if self.clips.dtype != torch.float32:
            raise ValueError(f"clips: expected float32, got {self.clips.dtype}")
        shape, dtype = tuple(self.labels.shape), self.labels.dtype
        if shape != self.clips.shape[:1] or dtype != torch.int64:
            raise ValueError(f"labels: expected ({len(self.clips)},) of int64, got {shape} of {dtype}")
        if len(self.labels):
            least, most = int(self.labels.min()), int(self.labels.max())
            if least < 0 or most >= self.num_classes:
                raise ValueError(f"labels: expected 0 to {self.num_classes - 1}, got {least} to {most}")

        frames = self.clips.shape[2]
        if not len(self.lengths):
            self.lengths = torch.full((len(self.clips),), frames)
        shape, dtype = tuple(self.lengths.shape), self.lengths.dtype
        if shape != self.clips.shape[:1] or dtype != torch.int64:
            raise ValueError(f"lengths: expected ({len(self.clips)},) of int64, got {shape} of {dtype}")
        if len(self.lengths) and not 1 <= int(self.lengths.min()) <= int(self.lengths.max()) <= frames:
            raise ValueError(
                f"lengths: expected 1 to {frames} frames, got {int(self.lengths.min())} to {int(self.lengths.max())}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int, Tensor]:
        return self.clips[index], self.labels[index], index, self.lengths[index]

    def subset(self, indices: Tensor) -> "SkeletonDataset":
        """The clips of these indices (n,), in their order; an item's index is then its place among them."""
        return SkeletonDataset(
            self.clips[indices], self.labels[indices], self.layout, self.class_names, self.lengths[indices]
        )
