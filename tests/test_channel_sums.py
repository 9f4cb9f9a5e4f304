"""channel_sums against sums in float64: formats, dtypes, accuracy, gradients."""

from __future__ import annotations

import pytest
import torch
from conftest import run_with_gradients, small
from torch import Tensor

import skelops
from skelops.ops.channel_sums import reference

FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(2, 64, 50, 25), (3, 14, 7, 17), (1, 3, 300, 25), (2, 33, 3, 1), (4, 216, 5, 20), (5, 6, 1, 1), (0, 3, 4, 25)]


@pytest.mark.every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_matches_the_reference(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = (torch.randn(small(*shape)) + 1).to(dtype).contiguous(memory_format=memory_format)
    for result, expected in zip(skelops.channel_sums(x), reference.channel_sums(x), strict=True):
        assert result.dtype == torch.float64
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-4)


@pytest.mark.every_level
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_variance_of_a_map_far_from_zero(memory_format: torch.memory_format, kernels: str) -> None:
    x = (torch.randn(4, 2, 50 if kernels == "triton" else 500, 25) + 30).contiguous(memory_format=memory_format)
    total, square_sum = skelops.channel_sums(x)
    n = x[:, 0].numel()
    torch.testing.assert_close(
        square_sum / n - (total / n) ** 2, x.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_gradients(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 9, 5, 17).to(dtype).contiguous(memory_format=memory_format)
    for pick in (lambda s: s[0], lambda s: s[1], lambda s: s[0] + s[1]):
        ours, theirs = (
            run_with_gradients(lambda a, sums=sums, pick=pick: pick(sums(a)), [x], [0])[1][0]
            for sums in (skelops.channel_sums, reference.channel_sums)
        )
        torch.testing.assert_close(ours, theirs)
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(sum(s.sum() for s in skelops.channel_sums(leaf)), leaf)
    assert gradient.is_contiguous(memory_format=memory_format)


@pytest.mark.every_level
@pytest.mark.usefixtures("kernels")
def test_strided_maps() -> None:
    base = torch.randn(4, 6, 10, 25)
    wide = base.contiguous(memory_format=torch.channels_last)
    for x in (
        wide[:, 1:4],
        wide[:, :1],
        base[:, 1::2],
        base.transpose(2, 3),
        base[:, :, ::3],
        base[:1].expand(3, -1, -1, -1),
    ):
        for result, expected in zip(skelops.channel_sums(x), reference.channel_sums(x), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-4)


@pytest.mark.cpu
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_results_are_bitwise_the_same_for_any_number_of_threads(memory_format: torch.memory_format) -> None:
    x = torch.randn(6, 70, 20, 25).contiguous(memory_format=memory_format)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(skelops.channel_sums(x))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_gradcheck_opcheck_and_compile() -> None:
    assert torch.autograd.gradcheck(
        skelops.channel_sums, torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    )
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.skelops.channel_sums.default, (x,))

    def variance(x: Tensor) -> Tensor:
        total, square_sum = skelops.channel_sums(x * 2)
        return square_sum - total**2

    compiled = torch.compile(variance, fullgraph=True, dynamic=True, backend="aot_eager")
    for B in (2, 5):
        x = torch.randn(B, 3, 4, 25, requires_grad=True)
        torch.testing.assert_close(compiled(x), variance(x))
        torch.testing.assert_close(*(torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, variance)))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \(B, C, T, V\), got \(3, 4\)"):
        skelops.channel_sums(torch.zeros(3, 4))
    with pytest.raises(TypeError, match="x: expected a float tensor, got torch.int64"):
        skelops.channel_sums(torch.zeros(1, 2, 3, 4, dtype=torch.int64))
