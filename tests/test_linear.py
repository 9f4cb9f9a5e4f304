"""linear against torch's own: values, gradients, strides, dispatch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import check_against_eager
from torch import Tensor
from torch.nn import functional as F

import skelops
from skelops.nn import Linear
from skelops.ops.linear import MULTIPLIES_BFLOAT16

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


def lowered(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function under autocast to bfloat16."""
    return torch.autocast(torch.get_default_device().type, torch.bfloat16)(function)


def test_autocast() -> None:
    x, weight, bias = make((6,), 20, 9)
    assert torch.equal(lowered(skelops.linear)(x, weight, bias), lowered(F.linear)(x, weight, bias))


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our products of bfloat16 at every size."""
    if not MULTIPLIES_BFLOAT16:
        pytest.skip("this CPU, or the level of the kernels, does not multiply bfloat16")
    monkeypatch.setattr(sys.modules["skelops.ops.linear"], "_has_kernel", lambda x, weight: True)


EVEN = [(rows, inputs + inputs % 2, outputs + outputs % 2) for rows, inputs, outputs in [*SHAPES, ((33,), 2050, 520)]]


@pytest.mark.cpu
@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("shape", EVEN, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_matches_eager_under_autocast(shape: tuple[tuple[int, ...], int, int], biased: bool) -> None:
    inputs = make(*shape)[: 3 if biased else 2]
    check_against_eager(lowered(skelops.linear), lowered(F.linear), inputs, differentiable=range(len(inputs)))


@pytest.mark.cpu
@pytest.mark.usefixtures("pairs")
def test_strides_under_autocast() -> None:
    x, _, bias = make((6, 8), 20, 24)
    for view in (x.transpose(0, 1), x[:, ::2], x[..., 4:14], x[:1].expand(5, 8, 20), x.permute(2, 1, 0)[:, :, :4]):
        inputs = [view, torch.randn(view.shape[-1], 24).T, bias]
        check_against_eager(lowered(skelops.linear), lowered(F.linear), inputs, differentiable=range(3))


@pytest.mark.cpu
@pytest.mark.usefixtures("pairs")
def test_what_is_not_finite_spreads_under_autocast_as_in_eager() -> None:
    x, weight, bias = make((9,), 34, 18)
    x[3, 33], weight[5, 33], weight[17, 0] = torch.nan, torch.inf, torch.nan
    ours, theirs = lowered(skelops.linear)(x, weight, bias), lowered(F.linear)(x, weight, bias)
    assert torch.equal(ours.isnan(), theirs.isnan()) and torch.equal(ours.isinf(), theirs.isinf())
    assert ours.isnan().sum() > 9 and ours.isinf().any()


@pytest.mark.cpu
@pytest.mark.skipif(not MULTIPLIES_BFLOAT16, reason="without products of bfloat16 autocast is torch's")
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "ours"),
    [
        (20, 1024, 1024, True),
        (20, 512, 1024, False),
        (20, 1025, 1024, False),
        (20, 1024, 1025, False),
        (1025, 1024, 1024, False),
    ],
)
def test_large_weights_keep_float32_under_autocast(rows: int, inputs: int, outputs: int, ours: bool) -> None:
    x, weight, bias = (y.requires_grad_() for y in make((rows,), inputs, outputs))
    y = lowered(skelops.linear)(x, weight, bias)
    for gradient in torch.autograd.grad(y.float().square().sum(), (weight, bias)):
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, gradient.bfloat16().float()) != ours, "torch's are rounded"


@pytest.mark.cpu
@pytest.mark.usefixtures("pairs")
def test_opcheck_and_bits_of_bfloat16() -> None:
    x, weight, bias = (y.requires_grad_() for y in make((700,), 600, 200))
    torch.library.opcheck(torch.ops.skelops.linear.default, (x[:12].bfloat16(), weight, bias))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = lowered(skelops.linear)(x, weight, bias)
            results.append([y, *torch.autograd.grad(y.float().square().sum(), (x, weight, bias))])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.cpu
def test_compiles_whole_under_autocast() -> None:
    x, weight, bias = (y.requires_grad_() for y in make((12,), 1024, 1024))
    step = lowered(skelops.linear)
    compiled, expected = torch.compile(step, fullgraph=True)(x, weight, bias), step(x, weight, bias)
    torch.testing.assert_close(compiled, expected)
    gradients = (torch.autograd.grad(y.float().square().sum(), (x, weight, bias)) for y in (compiled, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)


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
