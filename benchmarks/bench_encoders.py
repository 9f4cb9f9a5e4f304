"""Whole encoders against the same in plain eager PyTorch, forward and backward, in training mode."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from skelops.methods import encoders
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import eager
from benchmarks.case import GPU_DTYPES, Case, Work

#: Encoder, its arguments, clips in the batch on a CPU, frames.
ENCODERS: list[tuple[str, dict[str, Any], int, int]] = [
    ("STGCN", {"width": 16}, 8, 50),
    ("STGCN", {"width": 64}, 2, 50),
    ("AGCN", {}, 2, 64),
    ("CTRGCN", {}, 2, 64),
    ("Hyperformer", {}, 2, 64),
    ("SCDEncoder", {}, 2, 64),
    ("DSTA", {}, 4, 50),
    ("HCN", {}, 16, 64),
]


class Autocast(nn.Module):
    """A model under autocast to a dtype; float32 runs as it is."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, clips: Tensor) -> Tensor:
        with torch.autocast(clips.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(clips)


def twins(name: str, arguments: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """An encoder of skelops and its eager twin, with the same weights, none of them at a value that hides others."""
    torch.manual_seed(0)
    ours, theirs = getattr(encoders, name)(**arguments), getattr(eager, name)(**arguments)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.dim() == 1 or parameter.std() < 1e-4:
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@cache
def work(name: str, arguments: tuple[tuple[str, Any], ...], clips: int, frames: int, size: int) -> tuple[Work, Work]:
    """Work of the passes: the FLOP of the eager encoder's matrix products and convolutions; its blocks' maps, read and
    written once forward and twice backward, and its parameters, read twice and their gradients written."""
    model = twins(name, dict(arguments))[1].to("meta")  # shapes say it all
    elements: list[int] = []
    blocks = [m for n, m in model.named_modules() if n and type(m).__name__ in ("Block", "Unit", "STAttentionBlock")]
    for block in blocks:
        block.register_forward_hook(lambda m, inputs, y: elements.append(inputs[0].numel() + y.numel()))
    with FlopCounterMode(display=False) as counter:
        y = model(torch.randn(clips, 3, frames, 25, 2, device="meta"))
        forward = counter.get_total_flops()
        y.sum().backward()
    parameters = sum(p.numel() for p in model.parameters())
    return (
        Work(size * (sum(elements) + parameters), forward),
        Work(size * (3 * sum(elements) + 3 * parameters), counter.get_total_flops()),
    )


def case(name: str, arguments: dict[str, Any], clips: int, frames: int, dtype: torch.dtype) -> Case:
    ours, theirs = (Autocast(model, dtype) for model in twins(name, arguments))
    forward, both = work(name, tuple(arguments.items()), clips, frames, torch.finfo(dtype).bits // 8)
    form = " ".join(f"{key}={value}" for key, value in {**arguments, "N": clips, "T": frames}.items())
    return Case(
        op=name,
        name=f"{form} V=25 M=2",
        dtype=dtype,
        inputs=lambda: (torch.randn(clips, 3, frames, 25, 2),),
        skelops=ours,
        eager=theirs,
        forward=forward,
        backward=both,
        headline=True,
        whole=True,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    if device == "cuda":
        for dtype in GPU_DTYPES:
            for name, arguments, _, frames in ENCODERS:
                yield case(name, arguments, 128, frames, dtype)
        return
    for dtype in (torch.float32, torch.bfloat16):
        for name, arguments, clips, frames in ENCODERS:
            yield case(name, arguments, clips, frames, dtype)
