"""Encoders: clips in, features out."""

from .agcn import AGCN
from .ctr_gcn import CTRGCN
from .dsta import DSTA
from .encoder import Encoder
from .hcn import HCN
from .hyperformer import Hyperformer
from .scd import SCDEncoder
from .st_gcn import STGCN

#: Encoders by the name under which checkpoints store them.
ENCODERS: dict[str, type[Encoder]] = {
    encoder.__name__: encoder for encoder in (AGCN, CTRGCN, DSTA, HCN, Hyperformer, SCDEncoder, STGCN)
}

__all__ = ["AGCN", "CTRGCN", "DSTA", "ENCODERS", "HCN", "STGCN", "Encoder", "Hyperformer", "SCDEncoder"]
