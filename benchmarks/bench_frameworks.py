"""Training steps of the frameworks, from the views to the optimizer, against the same in plain eager PyTorch.

torch.compile gets the eager step as it is, in several graphs: forward and backward of the encoders, the losses and the
optimizer are compiled; what reads a number on the host or selects by boolean masks is not (the write into a queue, the
mining of STD-CL, the losses of SDS-CL).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from skelops.methods import SDSCL, STDCL, SCDNet, SkeAttnCLR, SkeleMixCLR, SkeletonCLR, encoders
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import eager
from benchmarks.case import GPU_DTYPES, Case, Work
from benchmarks.eager import frameworks, sds_cl, std_cl

FRAMES, EMBEDDING, QUEUE = 64, 128, 32768


class Step:
    """A training step: forward, backward, optimizer, and what the framework updates by itself; returns the loss."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.model, self.dtype = model.train(), dtype
        parameters = [p for p in model.parameters() if p.requires_grad]
        # A rate so small that thousands of steps leave the weights where they are.
        self.optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def __call__(self, *inputs: Any) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        device = next(self.model.parameters()).device.type
        with torch.enable_grad():
            with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
                result = self.model(*inputs)
            loss = result["loss"] if isinstance(result, dict) else result
            loss.backward()
        self.optimizer.step()
        return loss.detach()


def encoder_twins(name: str, **arguments: Any) -> tuple[Any, Any]:
    ours, theirs = getattr(encoders, name)(**arguments), getattr(eager, name)(**arguments)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.feature_dim = ours.feature_dim
    return ours, theirs


Inputs = Callable[[], tuple[Tensor, ...]]
Made = tuple[nn.Module, nn.Module, Inputs]


def two_views(clips: int, frames: int = FRAMES) -> Inputs:
    return lambda: (torch.randn(clips, 3, frames, 25, 2), torch.randn(clips, 3, frames, 25, 2))


def skeleton_clr(clips: int) -> Made:
    ours, theirs = encoder_twins("STGCN", width=16)
    return SkeletonCLR(ours), frameworks.SkeletonCLR(theirs, EMBEDDING, QUEUE), two_views(clips)


def skelemix_clr(clips: int) -> Made:
    ours, theirs = encoder_twins("STGCN", width=16)
    model = SkeleMixCLR(ours, mixes=3, plus=True)
    return model, frameworks.SkeleMixCLR(theirs, EMBEDDING, QUEUE), two_views(clips)


def skeattn_clr(clips: int) -> Made:
    ours, theirs = encoder_twins("STGCN", width=64)
    return SkeAttnCLR(ours), frameworks.SkeAttnCLR(theirs, EMBEDDING, QUEUE), two_views(clips)


def of_sds_cl(clips: int) -> Made:
    ours, theirs = encoder_twins("DSTA")
    return SDSCL(ours), sds_cl.SDSCL(theirs, ours.map_channels), two_views(clips, 50)


def scd_net(clips: int) -> Made:
    ours, theirs = encoder_twins("SCDEncoder")
    return SCDNet(ours), frameworks.SCDNet(theirs, ours.feature_dim // 2, EMBEDDING, 8192), two_views(clips)


def of_std_cl(clips: int) -> Made:
    """The banks as after an epoch: NTU-60, cross-subject."""
    total, classes, frames = 40091, 60, FRAMES // 4
    ours, theirs = encoder_twins("Hyperformer")
    models: tuple[Any, Any] = (
        STDCL(ours, classes, total, frames),
        std_cl.STDCL(theirs, ours.map_channels, classes, total, frames, 25),
    )
    for name in models[0].banks:
        bank, labels = nn.functional.normalize(torch.randn(total, 256), dim=1), torch.arange(total) % classes
        for model in models:
            model.banks[name].bank.copy_(bank)
            model.banks[name].labels.copy_(labels)
            model.banks[name].visited.fill_(True)
    view = two_views(clips)
    return *models, lambda: (view()[0], torch.arange(clips) % classes, torch.arange(clips))


#: Framework, what makes it, clips in the batch on a CPU.
FRAMEWORKS: list[tuple[str, Callable[[int], Made], int]] = [
    ("SkeletonCLR", skeleton_clr, 8),
    ("SkeleMixCLR", skelemix_clr, 8),
    ("SkeAttnCLR", skeattn_clr, 4),
    ("SDSCL", of_sds_cl, 4),
    ("SCDNet", scd_net, 4),
    ("STDCL", of_std_cl, 8),
]


@cache
def work(make: Callable[[int], Made], clips: int) -> Work:
    """Weights, gradients and momentum of the optimizer, each read and written, and the FLOP of the matrix products and
    convolutions of the eager step, counted in a small batch: they grow with the clips."""
    few = 4  # SkeleMix takes three clips or more
    ours, theirs, inputs = make(few)
    parameters = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    with FlopCounterMode(display=False) as counter:
        Step(theirs, torch.float32)(*inputs())
    return Work(6 * 4 * parameters, counter.get_total_flops() * clips / few)


def case(name: str, make: Callable[[int], Made], clips: int, dtype: torch.dtype) -> Case:
    torch.manual_seed(0)
    ours, theirs, inputs = make(clips)
    return Case(
        op=name,
        name=f"N={clips} V=25 M=2",
        dtype=dtype,
        inputs=inputs,
        skelops=Step(ours, dtype),
        eager=Step(theirs, dtype),
        forward=work(make, clips),
        headline=True,
        whole=True,
        pass_name="step",
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    for dtype in GPU_DTYPES if device == "cuda" else (torch.float32, torch.bfloat16):
        for name, make, clips in FRAMEWORKS:
            yield case(name, make, 128 if device == "cuda" else clips, dtype)
