"""Skeleton graphs: joint layouts and their adjacency matrices."""

from .adjacency import STRATEGIES, adjacency, hops
from .layouts import LAYOUTS, Layout, get_layout, part_of_joint

__all__ = ["LAYOUTS", "STRATEGIES", "Layout", "adjacency", "get_layout", "hops", "part_of_joint"]
