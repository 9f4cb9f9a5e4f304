"""mask_pool against eager PyTorch: every form of mask, layouts, dtypes, gradients, and what the compiler sees of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import check_against_eager, run_with_gradients, small
from torch import Tensor

import skelops
from skelops.ops.mask_pool import reference

FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (4, 3, 5, 25),
    (2, 64, 50, 25),
    (4, 16, 13, 20),
    (2, 130, 3, 18),
    (2, 7, 1, 17),
    (1, 1, 3, 1),
    (2, 5, 9, 64),
    (0, 3, 4, 25),
]
#: What is divided by differs after the sums: for it, 16 bits are read from one shape.
CASES = [
    (shape, dtype, divide_by)
    for divide_by in ("mask", "size")
    for dtype in DTYPES
    for shape in (SHAPES if divide_by == "mask" or dtype == torch.float32 else SHAPES[:1])
]


def masks(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    """Bool and soft masks of every form that goes with a map of this shape."""
    B, _, T, V = shape
    forms: list[tuple[int, ...]] = [(T, V), (B, T, V), shape]
    if B and B % 2 == 0:
        forms.append((B // 2, T, V))
    for form in forms:
        soft = torch.rand(form)
        for mask in (soft > 0.5, soft.to(dtype)):
            yield mask
            if len(form) == 4:
                yield mask.contiguous(memory_format=torch.channels_last)


def ours(divide_by: str) -> Callable[..., tuple[Tensor, ...]]:
    return lambda x, mask: skelops.mask_pool(x, mask, divide_by)


def eager(divide_by: str) -> Callable[..., tuple[Tensor, ...]]:
    return lambda x, mask: reference.mask_pool(x, mask, divide_by == "size")


@pytest.mark.parametrize(("shape", "dtype", "divide_by"), CASES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_matches_eager(
    shape: tuple[int, ...], dtype: torch.dtype, divide_by: str, memory_format: torch.memory_format
) -> None:
    shape = small(*shape)
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    for mask in masks(shape, dtype):
        soft = mask.is_floating_point()
        check_against_eager(ours(divide_by), eager(divide_by), [x, mask], [0, 1] if soft else [0])


def test_the_reference_is_the_formula_of_the_field() -> None:
    x, mask = torch.randn(4, 3, 5, 25), torch.rand(5, 25)
    inside, outside = skelops.mask_pool(x, mask)
    torch.testing.assert_close(inside, (x * mask).sum((2, 3)) / mask.sum())
    torch.testing.assert_close(outside, (x * (1 - mask)).sum((2, 3)) / (1 - mask).sum())
    per_channel = torch.rand(4, 3, 5, 25)
    inside, outside = skelops.mask_pool(x, per_channel, divide_by="size")
    torch.testing.assert_close(inside, (x * per_channel).mean((2, 3)))
    torch.testing.assert_close(outside, (x * (1 - per_channel)).mean((2, 3)))


@pytest.mark.usefixtures("kernels")
def test_bodies_share_the_mask_of_their_clip() -> None:
    x, mask = torch.randn(6, 3, 5, 25), torch.rand(3, 5, 25)
    for result, expected in zip(
        skelops.mask_pool(x, mask), skelops.mask_pool(x, mask.repeat_interleave(2, 0)), strict=True
    ):
        assert torch.equal(result, expected)


@pytest.mark.every_level
@pytest.mark.parametrize("wanted", [[0], [1], [0, 1]], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_each_subset_of_gradients(wanted: list[int], memory_format: torch.memory_format) -> None:
    shape = small(4, 20, 7, 18)
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    for mask in masks(shape, torch.float32):
        if mask.is_floating_point():
            check_against_eager(ours("mask"), eager("mask"), [x, mask], wanted)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_each_output_alone_and_expanded_upstream_gradients(memory_format: torch.memory_format) -> None:
    shape = small(4, 20, 7, 25)
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    for mask in masks(shape, torch.float32):
        if not mask.is_floating_point():
            continue
        for i in range(2):
            check_against_eager(
                lambda *a, i=i: ours("mask")(*a)[i], lambda *a, i=i: eager("mask")(*a)[i], [x, mask], [0, 1]
            )
        gradients = []
        for function in (ours("mask"), eager("mask")):
            leaves = [x.clone().requires_grad_(), mask.clone().requires_grad_()]
            gradients.append(torch.autograd.grad(sum(y.sum() for y in function(*leaves)), leaves))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.every_level
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_large_shared_masks(memory_format: torch.memory_format, kernels: str) -> None:
    B = 64 if kernels == "cpu" else 8
    x = torch.randn(B, 40 if kernels == "cpu" else 2, 30, 25).contiguous(memory_format=memory_format)
    for mask in (torch.rand(30, 25), torch.rand(B // 2, 30, 25)):
        check_against_eager(ours("mask"), eager("mask"), [x, mask], [0, 1])


@pytest.mark.every_level
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_long_clips_keep_the_accuracy_of_a_pairwise_sum(memory_format: torch.memory_format, kernels: str) -> None:
    frames = 3000 if kernels == "cpu" else 300
    x = (torch.rand(1, 3, frames, 25) + 1).contiguous(memory_format=memory_format)
    for mask in (torch.rand(frames, 25), torch.rand(1, 3, frames, 25)):
        check_against_eager(ours("mask"), eager("mask"), [x, mask], [0, 1])


@pytest.mark.every_level
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_an_empty_side_is_zero_and_has_no_gradient(value: float, memory_format: torch.memory_format) -> None:
    shape = (4, 5, 6, 25)
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    for form in ((6, 25), (2, 6, 25), shape):
        empty = 0 if value == 0 else 1
        for mask in (torch.full(form, value), torch.full(form, value) > 0.5):
            wanted = [0, 1] if mask.is_floating_point() else [0]
            outputs, gradients = run_with_gradients(lambda *a, i=empty: ours("mask")(*a)[i], [x, mask], wanted)
            assert not outputs[0].any()
            assert not any(gradient.any() for gradient in gradients)
            full = ours("mask")(x, mask)[1 - empty]
            torch.testing.assert_close(full, x.mean((2, 3)))


@pytest.mark.every_level
@pytest.mark.usefixtures("kernels")
def test_one_empty_mask_among_others() -> None:
    x, mask = torch.randn(4, 5, 6, 25), torch.rand(2, 6, 25)
    mask[1] = 0
    check_against_eager(ours("mask"), eager("mask"), [x, mask], [0, 1])
    assert not skelops.mask_pool(x, mask).inside[2:].any()


@pytest.mark.every_level
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_nan_and_infinity_do_what_the_formula_does(value: float, memory_format: torch.memory_format) -> None:
    shape = small(2, 20, 6, 25)
    for mask in masks(shape, torch.float32):
        x = torch.randn(shape).contiguous(memory_format=memory_format)
        x[1, -1, 5, 24] = x[0, 1, 0, 0] = value
        for result, expected in zip(ours("mask")(x, mask), eager("mask")(x, mask), strict=True):
            assert torch.equal(result.isnan(), expected.isnan())
            assert torch.equal(result.isfinite(), expected.isfinite())
    # 0 * NaN: a value that a mask leaves out is still seen.
    mask = torch.ones(6, 25, dtype=torch.bool)
    mask[0, 0] = False
    x = torch.randn(shape)
    x[0, 1, 0, 0] = math.nan
    assert skelops.mask_pool(x, mask).inside[0, 1].isnan()
