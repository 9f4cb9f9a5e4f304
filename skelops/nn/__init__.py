"""Modules on the ops."""

from skelops.nn.adaptive_graph_conv import AdaptiveGraphConv
from skelops.nn.batch_norm import BatchNormAct2d
from skelops.nn.channel_graph_conv import ChannelGraphConv
from skelops.nn.graph_conv import GraphConv, STGCNBlock
from skelops.nn.hop_attention import HopAttention
from skelops.nn.info_nce import InfoNCELoss
from skelops.nn.joint_attention import JointAttentionBlock
from skelops.nn.linear import Linear
from skelops.nn.memory_bank import MemoryBank
from skelops.nn.momentum import MomentumEncoder
from skelops.nn.multi_scale import MultiScaleTemporalConv
from skelops.nn.pooling import MaskPool, SqueezePool
from skelops.nn.queue import MomentumQueue
from skelops.nn.recomputing import recompute
from skelops.nn.temporal_conv import TemporalConv

__all__ = [
    "AdaptiveGraphConv",
    "BatchNormAct2d",
    "ChannelGraphConv",
    "GraphConv",
    "HopAttention",
    "InfoNCELoss",
    "JointAttentionBlock",
    "Linear",
    "MaskPool",
    "MemoryBank",
    "MomentumEncoder",
    "MomentumQueue",
    "MultiScaleTemporalConv",
    "STGCNBlock",
    "SqueezePool",
    "TemporalConv",
    "recompute",
]
