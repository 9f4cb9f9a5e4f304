"""linear against torch's own: values, gradients, strides, dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import check_against_eager
from torch import Tensor
from torch.nn import functional as F

import skelops
from skelops.nn import Linear

# leading axes, inputs, outputs
SHAPES = [
    ((7, 5), 33, 18),
    ((600,), 130, 64),
    ((1,), 1, 1),
    ((2, 3, 4), 16, 70),
    ((9,), 1100, 5),
    ((1040,), 17, 129),
    ((0, 4), 6, 8),
    ((4,), 6, 0),
    ((4,), 0, 6),
]


def make(rows: tuple[int, ...], inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    sizes = (*rows, inputs), (outputs, inputs), (outputs,)
    return [torch.randn(size).to(dtype) for size in sizes]


@pytest.mark.every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.cpu
def test_matches_eager(shape: tuple[tuple[int, ...], int, int], biased: bool, backend: str) -> None:
    inputs = make(*shape)[: 3 if biased else 2]
    with skelops.backend(backend):
        check_against_eager(skelops.linear, F.linear, inputs, differentiable=range(len(inputs)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_torchs(dtype: torch.dtype) -> None:
    x, weight, bias = make((3, 4), 20, 9, dtype)
    assert torch.equal(skelops.linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_subsets_of_gradients(wanted: tuple[int, ...]) -> None:
    check_against_eager(skelops.linear, F.linear, make((5, 9), 40, 33), differentiable=wanted)


@pytest.mark.every_level
def test_strides() -> None:
    x, _, bias = make((6, 8), 20, 24)
    views = x.transpose(0, 1), x[:, ::2], x[..., 4:14], x[:1].expand(5, 8, 20), x.permute(2, 1, 0)[:, :, :4]
    for view in views:
        inputs = [view, torch.randn(view.shape[-1], 24).T, bias]
        leaves = [y.detach().requires_grad_() for y in inputs]
        ours, theirs = skelops.linear(*leaves), F.linear(*leaves)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        # sum: an upstream gradient of stride 0
        gradients = (torch.autograd.grad(y.sum(), leaves) for y in (ours, theirs))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


@pytest.mark.cpu
def test_opcheck_and_compile() -> None:
    x, weight, bias = (y.requires_grad_() for y in make((12,), 20, 9))
    torch.library.opcheck(torch.ops.skelops.linear.default, (x, weight, bias))
    torch.library.opcheck(torch.ops.skelops.linear.default, (x, weight, None))
    compiled = torch.compile(lambda y: skelops.linear(y * 2, weight, bias).square(), fullgraph=True, dynamic=True)
    for rows in (3, 5):
        y = torch.randn(rows, 2, 20).requires_grad_()
        expected = F.linear(y * 2, weight, bias).square()
        torch.testing.assert_close(compiled(y), expected, atol=1e-4, rtol=1e-4)
        leaves = y, weight, bias
        gradients = (torch.autograd.grad(z.sum(), leaves) for z in (compiled(y), expected))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


@pytest.mark.cpu
def test_repeats_bit_for_bit_with_any_number_of_threads() -> None:
    leaves = [y.requires_grad_() for y in make((700,), 600, 200)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = skelops.linear(*leaves)
            results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_autocast() -> None:
    x, weight, bias = (y.requires_grad_() for y in make((6,), 20, 9))
    with torch.autocast(x.device.type, torch.bfloat16):
        assert skelops.linear(x, weight, bias).dtype == torch.bfloat16


def test_module_is_torchs_linear() -> None:
    torch.manual_seed(1)
    ours = Linear(20, 9)
    torch.manual_seed(1)
    theirs = torch.nn.Linear(20, 9)
    x = torch.randn(2, 3, 20)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.cpu
def test_double_backward_is_refused() -> None:
    x, weight, bias = make((3,), 4, 5)
    y = skelops.linear(x.requires_grad_(), weight, bias)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_bad_input() -> None:
    x, weight, bias = make((3,), 4, 5)
    cases: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((x[:, :3], weight), ValueError, r"x: expected shape \(..., I\) with I=4, got \(3, 3\)"),
        ((torch.tensor(1.0), weight), ValueError, r"x: expected shape \(..., I\) with I=4, got \(\)"),
        ((x, weight[0]), ValueError, r"weight: expected shape \(O, I\), got \(4,\)"),
        ((x, weight, bias[:2]), ValueError, r"bias: expected shape \(O,?\) with .*O=5.*, got \(2,\)"),
        ((x, weight.double()), TypeError, "weight: expected torch.float32 as x, got torch.float64"),
        ((x.long(), weight), TypeError, "x: expected a float tensor, got torch.int64"),
        (([1.0], weight), TypeError, "x: expected a float tensor, got list"),
        ((x, weight.to("meta")), ValueError, "weight: expected device .* as x, got meta"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            skelops.linear(*arguments)
