"""mask_pool as a torch op: strides, formats, determinism, the compiler's view, oracles and refusals."""

from __future__ import annotations

import pytest
import torch
from conftest import check_against_eager, run_with_gradients
from test_mask_pool import FORMATS, eager, masks, ours
from torch import Tensor

import skelops


def test_strided_maps_and_masks() -> None:
    base = torch.randn(4, 6, 10, 25)
    for x in (
        base.permute(0, 3, 1, 2),
        base.transpose(2, 3),
        base[:, 1::2],
        base[..., 2:20],
        base[:1].expand(4, -1, -1, -1),
    ):
        B, C, T, V = x.shape
        shared, clips, full = torch.rand(V, T).t(), torch.rand(2, T, 1).expand(-1, -1, V), torch.rand(B, T, V, C)
        for mask in (shared, clips, full.permute(0, 3, 1, 2), full[..., :1].permute(0, 3, 1, 2).expand(-1, C, -1, -1)):
            check_against_eager(ours("mask"), eager("mask"), [x, mask], [0, 1])
            outputs = skelops.mask_pool(x, mask > 0.5)
            for result, expected in zip(outputs, eager("mask")(x, mask > 0.5), strict=True):
                torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("x_format", FORMATS, ids=str)
@pytest.mark.parametrize("mask_format", FORMATS, ids=str)
def test_formats_are_kept_in_the_gradients(x_format: torch.memory_format, mask_format: torch.memory_format) -> None:
    x = torch.randn(2, 8, 5, 25).contiguous(memory_format=x_format).requires_grad_()
    mask = torch.rand(2, 8, 5, 25).contiguous(memory_format=mask_format).requires_grad_()
    gradients = torch.autograd.grad(skelops.mask_pool(x, mask).inside.sum(), (x, mask))
    for gradient, memory_format in zip(gradients, (x_format, mask_format), strict=True):
        assert gradient.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_results_are_bitwise_the_same_for_any_number_of_threads(memory_format: torch.memory_format) -> None:
    shape = (4, 70, 50, 25)
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    threads = torch.get_num_threads()
    for mask in masks(shape, torch.float32):
        if not mask.is_floating_point():
            continue
        results = []
        try:
            for count in (1, 2, 3, 2):
                torch.set_num_threads(count)
                outputs, gradients = run_with_gradients(ours("mask"), [x, mask], [0, 1])
                results.append([*outputs, *gradients])
        finally:
            torch.set_num_threads(threads)
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_gradcheck() -> None:
    x = torch.randn(4, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    for divide_by in ("mask", "size"):
        for form in ((3, 5), (2, 3, 5), (4, 2, 3, 5)):
            mask = torch.rand(form, dtype=torch.float64, requires_grad=True)
            assert torch.autograd.gradcheck(ours(divide_by), (x, mask))
            assert torch.autograd.gradcheck(lambda a, m=mask, d=divide_by: skelops.mask_pool(a, m > 0.5, d), (x,))


def test_double_backward_is_refused() -> None:
    x, mask = torch.randn(2, 3, 4, 5, requires_grad=True), torch.rand(4, 5, requires_grad=True)
    gradients = torch.autograd.grad((skelops.mask_pool(x, mask).inside ** 2).sum(), (x, mask), create_graph=True)
    for gradient in gradients:
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            gradient.sum().backward(retain_graph=True)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_opcheck(memory_format: torch.memory_format) -> None:
    ops, shape = torch.ops.skelops, (4, 3, 2, 5)
    x = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
    for mask in masks(shape, torch.float32):
        leaf = mask.requires_grad_(mask.is_floating_point())
        torch.library.opcheck(ops.mask_pool.default, (x, leaf, False))
    mask = torch.rand(shape)
    inside, outside = skelops.mask_pool(x.detach(), mask)
    channels_last = memory_format == torch.channels_last
    torch.library.opcheck(ops.mask_pool_backward.default, (inside, outside, mask, False, channels_last))
    torch.library.opcheck(
        ops.mask_pool_backward_mask.default, (inside, outside, inside, outside, x.detach(), mask, True)
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def step(x: Tensor, mask: Tensor) -> Tensor:
        inside, outside = skelops.mask_pool(x * 2, mask)
        return (inside**2).sum() + outside.sum() / 2

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for N, T in ((2, 5), (3, 7)) if dynamic else ((2, 5),):
        leaves = [torch.randn(2 * N, 3, T, 25, requires_grad=True), torch.rand(N, T, 25, requires_grad=True)]
        torch.testing.assert_close(compiled(*leaves), step(*leaves))
        results = [torch.autograd.grad(f(*leaves), leaves) for f in (compiled, step)]
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_oracles(memory_format: torch.memory_format) -> None:
    shape = (4, 20, 16, 25)
    x = torch.randn(shape).contiguous(memory_format=memory_format)
    for mask in masks(shape, torch.float32):
        constant = torch.full(shape, 1.5).contiguous(memory_format=memory_format)
        for mean in skelops.mask_pool(constant, mask):
            torch.testing.assert_close(mean, torch.full((4, 20), 1.5))
        full = (
            mask.float()
            if mask.dim() == 4
            else mask.float()[..., None, :, :].expand(-1, 20, -1, -1)
            if mask.dim() == 3
            else mask.float().expand(shape)
        )
        share = full.repeat_interleave(4 // full.shape[0], 0).mean((2, 3))
        inside, outside = skelops.mask_pool(x, mask)
        torch.testing.assert_close(share * inside + (1 - share) * outside, x.mean((2, 3)))
        inside, outside = skelops.mask_pool(x, mask, "size")
        torch.testing.assert_close(inside + outside, x.mean((2, 3)))
    for mean in skelops.mask_pool(x, torch.full(shape, 0.5), "size"):
        torch.testing.assert_close(mean, x.mean((2, 3)) / 2)


def test_bad_input() -> None:
    x, mask = torch.randn(4, 3, 5, 25), torch.rand(5, 25)
    with pytest.raises(TypeError, match="x: expected a tensor, got list"):
        skelops.mask_pool([1.0], mask)
    with pytest.raises(TypeError, match="mask: expected a bool or float tensor, got torch.int64"):
        skelops.mask_pool(x, torch.ones(5, 25, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"mask: expected torch.bool or torch.float32 as x, got torch.bfloat16"):
        skelops.mask_pool(x, mask.bfloat16())
    with pytest.raises(ValueError, match=r"x: expected shape \(B, C, T, V\), got \(3, 5, 25\)"):
        skelops.mask_pool(x[0], mask)
    with pytest.raises(
        ValueError, match=r"mask: expected shape \(T, V\) or \(N, T, V\) or \(B, C, T, V\) .*got \(25, 5\)"
    ):
        skelops.mask_pool(x, mask.t())
    with pytest.raises(ValueError, match=r"mask: expected .* got \(4, 1, 5, 25\)"):
        skelops.mask_pool(x, mask.expand(4, 1, 5, 25))
    for N in (0, 3, 8):
        with pytest.raises(ValueError, match=f"mask: expected a number of masks N that divides B=4, got {N}"):
            skelops.mask_pool(x, torch.rand(N, 5, 25))
    with pytest.raises(ValueError, match="x: expected at least one channel, frame and joint"):
        skelops.mask_pool(x[..., :0], mask[..., :0])
    with pytest.raises(ValueError, match="divide_by: expected one of 'mask', 'size', got 'count'"):
        skelops.mask_pool(x, mask, divide_by="count")
    with pytest.raises(ValueError, match="mask: expected device cpu as x, got meta"):
        skelops.mask_pool(x, mask.to("meta"))
