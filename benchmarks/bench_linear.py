"""linear against torch's own, at the layers of SCD-Net; in 16 bits and on a GPU it is torch's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work


def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The 1x1 convolution of the rows, by another library than the product."""
    return functional.conv2d(x.mT[None, :, :, None], weight[:, :, None, None], bias)[0, :, :, 0].mT


def case(rows: int, inputs: int, outputs: int, dtype: torch.dtype, headline: bool = False) -> Case:
    def make() -> tuple[Tensor, ...]:
        sizes = (rows, inputs), (outputs, inputs), (outputs,)
        return tuple(torch.randn(size).to(dtype).requires_grad_() for size in sizes)

    numbers = rows * inputs + outputs * inputs + outputs + rows * outputs
    size, flop = dtype.itemsize, 2.0 * rows * inputs * outputs
    return Case(
        op="linear",
        name=f"rows={rows} I={inputs} O={outputs}",
        dtype=dtype,
        inputs=make,
        skelops=skelops.linear,
        eager=functional.linear,
        others={"conv2d": conv},
        forward=Work(size * numbers, flop),
        backward=Work(3 * size * numbers, 3 * flop),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    for dtype in GPU_DTYPES if device == "cuda" else (torch.float32,):
        yield case(256, 3200, 2048, dtype, headline=dtype == torch.float32)
        yield case(256, 2048, 6144, dtype)
        yield case(200, 4096, 2048, dtype)
        yield case(2048, 320, 128, dtype)
        yield case(64, 2048, 128, dtype)
        yield case(64, 256, 256, dtype)
