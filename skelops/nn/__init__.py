"""Modules on the ops."""

from skelops.nn.graph_conv import GraphConv, STGCNBlock
from skelops.nn.info_nce import InfoNCELoss
from skelops.nn.momentum import MomentumEncoder
from skelops.nn.pooling import MaskPool, SqueezePool
from skelops.nn.queue import MomentumQueue

__all__ = ["GraphConv", "InfoNCELoss", "MaskPool", "MomentumEncoder", "MomentumQueue", "STGCNBlock", "SqueezePool"]
