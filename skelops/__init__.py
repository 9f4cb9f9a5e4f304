"""skelops: fused ops for skeleton-based action recognition."""

from skelops._backend import backend
from skelops.ops.squeeze_pool import squeeze_pool

__version__ = "0.1.0"

__all__ = ["backend", "squeeze_pool"]
