"""linear against torch's own at the layers of SCD-Net, on a CPU also under autocast; on a GPU it is torch's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work

#: Rows, inputs, outputs.
SHAPES = [(256, 3200, 2048), (256, 2048, 6144), (200, 4096, 2048), (2048, 320, 128), (64, 2048, 128), (64, 256, 256)]


def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The 1x1 convolution of the rows, by another library than the product."""
    return functional.conv2d(x.mT[None, :, :, None], weight[:, :, None, None], bias)[0, :, :, 0].mT


def case(rows: int, inputs: int, outputs: int, dtype: torch.dtype, autocast: bool = False) -> Case:
    weights = torch.float32 if autocast else dtype

    def make() -> tuple[Tensor, ...]:
        x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        return tuple(y.requires_grad_() for y in (x.to(dtype), weight.to(weights), bias.to(weights)))

    size = dtype.itemsize * rows * (inputs + outputs) + weights.itemsize * outputs * (inputs + 1)
    flop = 2.0 * rows * inputs * outputs
    lower = torch.autocast("cpu", torch.bfloat16)
    ours, eager, by_conv = (lower(f) if autocast else f for f in (skelops.linear, functional.linear, conv))
    return Case(
        op="linear",
        name=f"rows={rows} I={inputs} O={outputs}" + " autocast" * autocast,
        dtype=dtype,
        inputs=make,
        skelops=ours,
        eager=eager,
        others={"conv2d": by_conv},
        forward=Work(size, flop),
        backward=Work(3 * size, 3 * flop),
        headline=(rows, inputs) == (256, 3200) and dtype == torch.float32,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    for dtype in GPU_DTYPES if device == "cuda" else (torch.float32,):
        yield from (case(*shape, dtype) for shape in SHAPES)
    if device == "cpu":
        yield from (case(*shape, torch.bfloat16, autocast=True) for shape in SHAPES)
