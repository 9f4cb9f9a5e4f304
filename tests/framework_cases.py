"""The table of frameworks that tests run over: small models, written as `skelops train` reads them."""

from __future__ import annotations

from typing import Any

import torch
from skelops.methods import encoders
from skelops.methods.framework import Batch, Framework
from torch import nn

from skelops import methods
from skelops.graphs import get_layout

CLIPS, FRAMES, CLASSES = 8, 8, 3
STGCN = "STGCN", {"width": 4, "feature_dim": 16}
DSTA = "DSTA", {"width": 4, "heads": 2}
SCD_ENCODER = "SCDEncoder", {"width": 8, "hidden_dim": 16, "heads": 2, "frames": FRAMES}
MOCO = {"embedding": 8, "queue_size": 40, "momentum": 0.9}
#: So few are mined that the banks have them after a batch.
BANK = {"embedding": 8, "frames": FRAMES // 4, "positives": 1, "hard_negatives": 3, "random_negatives": 3}

#: The class and its arguments; the class of the encoder and its arguments.
FRAMEWORKS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "SkeletonCLR": ("SkeletonCLR", MOCO, *STGCN),
    "SkeleMixCLR": ("SkeleMixCLR", MOCO, *STGCN),
    "SkeleMixCLR+": ("SkeleMixCLR", {**MOCO, "mixes": 3, "plus": True}, *STGCN),
    "SkeAttnCLR": ("SkeAttnCLR", {**MOCO, "heads": 4}, *STGCN),
    "SDSCL": ("SDSCL", {"heads": 2}, *DSTA),
    "SDSCL without tokens": ("SDSCL", {"heads": 2, "tokens": False}, *DSTA),
    "SCDNet": ("SCDNet", MOCO, *SCD_ENCODER),
    "STDCL": ("STDCL", BANK, *STGCN),
    "Supervised": ("Supervised", {}, *STGCN),
}


def arguments(
    name: str,
    layout: str = "ntu",
    bodies: int = 2,
    dropout: float = 0.0,
    clips: int = CLIPS,
    classes: int = CLASSES,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the framework, and those of its encoder.

    Args:
        clips, classes: of the training set, which some frameworks are made for.
    """
    framework, of_framework, encoder, of_encoder = FRAMEWORKS[name]
    for_set: dict[str, dict[str, Any]] = {
        "STDCL": {"clips": clips, "num_classes": classes},
        "Supervised": {"num_classes": classes},
        "SCDEncoder": {"bodies": bodies, "dropout": dropout},
        "STGCN": {"dropout": dropout},
    }
    of_encoder = {"layout": layout, **of_encoder, **for_set.get(encoder, {})}
    return {**of_framework, **for_set.get(framework, {})}, of_encoder


def shorten(encoder: Any) -> None:
    """Leaves out the blocks that change neither the width nor the frames."""
    if hasattr(encoder, "st_gcn_networks"):
        kept = (0, 4, 7, 9)
        encoder.st_gcn_networks = nn.ModuleList(encoder.st_gcn_networks[i] for i in kept)
        encoder.edge_importance = nn.ParameterList(encoder.edge_importance[i] for i in kept)
    elif hasattr(encoder, "graph_layers"):
        encoder.graph_layers = nn.ModuleList(encoder.graph_layers[i] for i in (0, 2, 4))
    else:
        for trunk in (encoder.gcn_t, encoder.gcn_s):
            trunk.l2 = trunk.l3 = nn.Identity()


def make(name: str, layout: str = "ntu", bodies: int = 2, dropout: float = 0.0, shallow: bool = False) -> Framework:
    """The framework, in training mode.

    Args:
        shallow: whether the encoder has few blocks, for what takes long to trace.
    """
    framework, _, encoder, _ = FRAMEWORKS[name]
    of_framework, of_encoder = arguments(name, layout, bodies, dropout)
    made = getattr(encoders, encoder)(**of_encoder)
    if shallow:
        shorten(made)
    return getattr(methods, framework)(made, **of_framework).train()


def configuration(name: str, **options: Any) -> dict[str, Any]:
    """The framework as the value of ``model.framework`` in a configuration; options as in `arguments`."""
    framework, _, encoder, _ = FRAMEWORKS[name]
    of_framework, of_encoder = arguments(name, **options)
    inner = {"class_path": f"skelops.methods.encoders.{encoder}", "init_args": of_encoder}
    return {"class_path": f"skelops.methods.{framework}", "init_args": {"encoder": inner, **of_framework}}


def batch(layout: str = "ntu", bodies: int = 2, device: str | torch.device = "cpu") -> Batch:
    """A batch of clips, the second of which lacks its last body where there are two."""
    clips = torch.randn(CLIPS, 3, FRAMES, get_layout(layout).num_joints, bodies)
    if bodies > 1:
        clips[1, ..., -1] = 0
    indices = torch.arange(CLIPS)
    return Batch(*(x.to(device) for x in (clips, indices % CLASSES, indices, torch.full((CLIPS,), FRAMES))))
