"""Frameworks for skeletons, contrastive and supervised, trained and evaluated end to end.

The frameworks and encoders need only torch; training, evaluation and their commands need the [train] extra.
"""

from skelops.methods.encoders import STGCN
from skelops.methods.skelemix_clr import SkeleMixCLR
from skelops.methods.supervised import Supervised

__all__ = ["STGCN", "SkeleMixCLR", "Supervised"]
