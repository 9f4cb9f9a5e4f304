"""linear against torch's own, at the layers of SCD-Net; on a GPU it is torch's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

import skelops
from benchmarks.case import Case, Work


def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The 1x1 convolution of the rows, by another library than the product."""
    return functional.conv2d(x.mT[None, :, :, None], weight[:, :, None, None], bias)[0, :, :, 0].mT


def case(rows: int, inputs: int, outputs: int, headline: bool = False) -> Case:
    def make() -> tuple[Tensor, ...]:
        sizes = (rows, inputs), (outputs, inputs), (outputs,)
        return tuple(torch.randn(size).requires_grad_() for size in sizes)

    numbers = rows * inputs + outputs * inputs + outputs + rows * outputs
    flop = 2.0 * rows * inputs * outputs
    return Case(
        op="linear",
        name=f"rows={rows} I={inputs} O={outputs}",
        dtype=torch.float32,
        inputs=make,
        skelops=skelops.linear,
        eager=functional.linear,
        others={"conv2d": conv},
        forward=Work(4 * numbers, flop),
        backward=Work(12 * numbers, 3 * flop),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    if device == "cuda":
        return
    yield case(256, 3200, 2048, headline=True)
    yield case(256, 2048, 6144)
    yield case(200, 4096, 2048)
    yield case(2048, 320, 128)
    yield case(64, 2048, 128)
    yield case(64, 256, 256)
