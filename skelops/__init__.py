"""skelops: fused ops for skeleton-based action recognition."""

from skelops._backend import backend
from skelops.ops.graph_conv import graph_conv
from skelops.ops.squeeze_pool import squeeze_pool

__version__ = "0.1.0"

__all__ = ["backend", "graph_conv", "squeeze_pool"]
