"""Data sets and the transforms that feed them to a model: NW-UCLA, NTU RGB+D, PKU-MMD, and a synthetic one."""

from . import ntu, nw_ucla, pku_mmd, synthetic, transforms
from .dataset import SkeletonDataset

__all__ = ["SkeletonDataset", "ntu", "nw_ucla", "pku_mmd", "synthetic", "transforms"]
