"""Encoders in plain eager PyTorch, in the usual style of the field: what those of skelops are measured against.

Constructors, parameter names and results are those of the encoders of the same names; a state_dict of one loads into
the other.
"""

from benchmarks.eager.agcn import AGCN
from benchmarks.eager.ctr_gcn import CTRGCN
from benchmarks.eager.dsta import DSTA
from benchmarks.eager.hcn import HCN
from benchmarks.eager.hyperformer import Hyperformer
from benchmarks.eager.scd import SCDEncoder
from benchmarks.eager.st_gcn import STGCN

__all__ = ["AGCN", "CTRGCN", "DSTA", "HCN", "STGCN", "Hyperformer", "SCDEncoder"]
