"""squeeze_pool against eager PyTorch: forms, layouts, dtypes, gradients, and what the compiler sees of it."""

from __future__ import annotations

import pytest
import torch
from conftest import check_against_eager
from torch import Tensor

import skelops
from skelops.ops.squeeze_pool import reference

SHAPES = [(4, 3, 5, 25), (2, 64, 50, 25), (6, 16, 13, 20), (2, 7, 1, 17), (1, 1, 3, 1), (2, 5, 9, 64), (0, 3, 4, 25)]


def eager(x: Tensor, lengths: Tensor | None = None, bodies: int = 1) -> tuple[Tensor, ...]:
    return reference.squeeze_pool(x, lengths, bodies)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_matches_eager(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    check_against_eager(skelops.squeeze_pool, eager, [x])


def test_opcheck() -> None:
    x = torch.randn(4, 3, 5, 25, requires_grad=True)
    torch.library.opcheck(torch.ops.skelops.squeeze_pool.default, (x, None, 2))
