"""Modules on the ops."""

from skelops.nn.graph_conv import GraphConv, STGCNBlock

__all__ = ["GraphConv", "STGCNBlock"]
