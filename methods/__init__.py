"""Frameworks for skeletons, contrastive and supervised, trained and evaluated end to end.

The frameworks and encoders need only torch; training, evaluation and their commands need the [train] extra.
"""

from skelops.methods.encoders import STGCN
from skelops.methods.fine_tuned import FineTuned
from skelops.methods.scd_net import SCDNet
from skelops.methods.sds_cl import SDSCL
from skelops.methods.skeattn_clr import SkeAttnCLR
from skelops.methods.skelemix_clr import SkeleMixCLR
from skelops.methods.skeleton_clr import SkeletonCLR
from skelops.methods.std_cl import STDCL
from skelops.methods.supervised import Supervised

__all__ = ["SDSCL", "STDCL", "STGCN", "FineTuned", "SCDNet", "SkeAttnCLR", "SkeleMixCLR", "SkeletonCLR", "Supervised"]
