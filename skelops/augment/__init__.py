"""Augmentations on a batch of clips (N, C, T, V, M), on its device, drawn from an explicit `torch.Generator`."""

from .masked_views import MaskedViews, flip, random_main_rotation, structural_mask, temporal_mask
from .skelemix import Mix, skelemix
from .views import RandomViews, Views, random_crop_resize, random_rotation, random_scale

__all__ = [
    "MaskedViews",
    "Mix",
    "RandomViews",
    "Views",
    "flip",
    "random_crop_resize",
    "random_main_rotation",
    "random_rotation",
    "random_scale",
    "skelemix",
    "structural_mask",
    "temporal_mask",
]
