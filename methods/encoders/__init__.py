"""Encoders: clips in, features out."""

from .st_gcn import STGCN

#: Encoders by the name under which checkpoints store them.
ENCODERS = {"STGCN": STGCN}

__all__ = ["ENCODERS", "STGCN"]
