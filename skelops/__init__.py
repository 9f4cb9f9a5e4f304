"""skelops: fused ops for skeleton-based action recognition."""

from skelops._backend import backend
from skelops.ops.aggregate import aggregate
from skelops.ops.bank_contrast import bank_contrast
from skelops.ops.batch_norm_affine import batch_norm_affine
from skelops.ops.channel_graph_conv import channel_graph_conv
from skelops.ops.channel_sums import channel_sums
from skelops.ops.ema_update import ema_update_
from skelops.ops.enqueue import enqueue_
from skelops.ops.graph_conv import graph_conv
from skelops.ops.hop_attention import hop_attention
from skelops.ops.info_nce import info_nce
from skelops.ops.joint_attention import joint_attention
from skelops.ops.linear import linear
from skelops.ops.mask_pool import mask_pool
from skelops.ops.multi_scale_conv import multi_scale_conv
from skelops.ops.norm_act import norm_act
from skelops.ops.nt_xent import nt_xent
from skelops.ops.queue_attention import queue_attention
from skelops.ops.squeeze_pool import squeeze_pool
from skelops.ops.temporal_conv import temporal_conv
from skelops.ops.temporal_max_pool import temporal_max_pool

__version__ = "0.1.0"

__all__ = [
    "aggregate",
    "backend",
    "bank_contrast",
    "batch_norm_affine",
    "channel_graph_conv",
    "channel_sums",
    "ema_update_",
    "enqueue_",
    "graph_conv",
    "hop_attention",
    "info_nce",
    "joint_attention",
    "linear",
    "mask_pool",
    "multi_scale_conv",
    "norm_act",
    "nt_xent",
    "queue_attention",
    "squeeze_pool",
    "temporal_conv",
    "temporal_max_pool",
]
