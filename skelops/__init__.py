"""skelops: fused ops for skeleton-based action recognition."""

from skelops._backend import backend
from skelops.ops.ema_update import ema_update_
from skelops.ops.enqueue import enqueue_
from skelops.ops.graph_conv import graph_conv
from skelops.ops.info_nce import info_nce
from skelops.ops.mask_pool import mask_pool
from skelops.ops.queue_attention import queue_attention
from skelops.ops.squeeze_pool import squeeze_pool

__version__ = "0.1.0"

__all__ = [
    "backend",
    "ema_update_",
    "enqueue_",
    "graph_conv",
    "info_nce",
    "mask_pool",
    "queue_attention",
    "squeeze_pool",
]
