"""Augmentations on a batch of clips (N, C, T, V, M), on its device, drawn from an explicit `torch.Generator`."""

from .skelemix import Mix, skelemix
from .views import RandomViews, random_rotation, random_scale

__all__ = ["Mix", "RandomViews", "random_rotation", "random_scale", "skelemix"]
