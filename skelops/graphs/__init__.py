"""Skeleton graphs: joint layouts and their adjacency matrices."""

from .adjacency import STRATEGIES, adjacency
from .layouts import LAYOUTS, Layout, get_layout

__all__ = ["LAYOUTS", "STRATEGIES", "Layout", "adjacency", "get_layout"]
