"""temporal_max_pool against eager PyTorch: forms, layouts, dtypes, gradients, and what the compiler sees of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import check_against_eager, small
from torch import Tensor

import skelops
from skelops.ops.temporal_max_pool import reference

SHAPES = [(2, 16, 13, 25), (3, 14, 7, 20), (1, 33, 1, 17), (2, 3, 2, 1), (2, 64, 5, 25), (0, 8, 4, 25)]
FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def eager(x: Tensor, scale: Tensor, shift: Tensor, stride: int = 1) -> Tensor:
    return reference.temporal_max_pool(x, scale, shift, stride, False)[0]


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    # Channels in half precision hold equal values, and the first of these has the gradient.
    return [torch.randn(shape).to(dtype), torch.randn(shape[1]), torch.randn(shape[1])]


@pytest.mark.every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.usefixtures("kernels")
def test_matches_eager(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, stride: int
) -> None:
    inputs = make(small(*shape), dtype)
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)
    check_against_eager(
        lambda *args: skelops.temporal_max_pool(*args, stride=stride),
        lambda *args: eager(*args, stride=stride),
        inputs,
        differentiable=(0, 1, 2),
    )
    y = skelops.temporal_max_pool(*inputs, stride=stride)
    assert y.is_contiguous(memory_format=memory_format) or not y.numel()


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_stats(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    inputs = make((3, 5, 7, 25), dtype)
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)
    y, total, squares = skelops.temporal_max_pool(*inputs, stride=2, stats=True)
    assert total.dtype == squares.dtype == torch.float64
    # The sums are of values that are not rounded to the dtype of the map yet.
    rounding = 4 * torch.finfo(dtype).eps * (y.numel() / 5) ** 0.5
    for found, values in ((total, y.double()), (squares, y.double().square())):
        torch.testing.assert_close(found, values.sum((0, 2, 3)), atol=4 * rounding, rtol=4 * torch.finfo(dtype).eps)

    def rounded(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        """With sums in the precision of the kernels' partial sums."""

        def run(*args: Tensor) -> tuple[Tensor, ...]:
            y, total, squares = function(*args)
            return y, total.float(), squares.float()

        return run

    check_against_eager(
        rounded(lambda *args: skelops.temporal_max_pool(*args, stride=2, stats=True)),
        rounded(lambda *args: reference.temporal_max_pool(*args, 2, True)),
        inputs,
        differentiable=(0, 1, 2),
        factor=4,
    )


@pytest.mark.usefixtures("kernels")
def test_slices_of_the_channels() -> None:
    wide = torch.randn(2, 40, 6, 25).contiguous(memory_format=torch.channels_last)
    x, upstream = wide[:, 8:24], torch.randn(2, 48, 6, 25).contiguous(memory_format=torch.channels_last)[:, 16:32]
    scale, shift = torch.rand(16), torch.randn(16)
    results = []
    for map_, grad in ((x, upstream), (x.contiguous(), upstream.contiguous())):
        leaf = map_.detach().requires_grad_()
        y = skelops.temporal_max_pool(leaf, scale, shift)
        results.append((y, *torch.autograd.grad(y, leaf, grad)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_subsets_of_gradients(wanted: tuple[int, ...]) -> None:
    check_against_eager(skelops.temporal_max_pool, eager, make((2, 6, 9, 25)), differentiable=wanted)


def test_the_first_of_equal_frames_has_the_gradient() -> None:
    x = torch.ones(1, 1, 5, 1, requires_grad=True)
    y = skelops.temporal_max_pool(x, torch.ones(1), torch.zeros(1))
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.flatten().tolist() == [2, 1, 1, 1, 0]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.usefixtures("kernels")
def test_nan_goes_through(memory_format: torch.memory_format) -> None:
    x = torch.randn(1, 16, 7, 2).contiguous(memory_format=memory_format)
    x[0, :, 3] = torch.nan
    y = skelops.temporal_max_pool(x, torch.ones(16), torch.zeros(16))
    assert y.isnan()[0, 0, :, 0].tolist() == [False, False, True, True, True, False, False]
    assert torch.equal(y.isnan(), eager(x, torch.ones(16), torch.zeros(16)).isnan())


@pytest.mark.every_level
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.usefixtures("kernels")
def test_gradients_find_the_nan(memory_format: torch.memory_format, stride: int) -> None:
    x = torch.randn(2, 16, 12, 3).masked_fill_(torch.rand(2, 16, 12, 3) < 0.3, torch.nan)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    scale, shift = torch.rand(16) + 0.5, torch.zeros(16)
    runs = skelops.temporal_max_pool(x, scale, shift, stride=stride), eager(x, scale, shift, stride)
    upstream = torch.randn_like(runs[0])
    found, expected = (torch.autograd.grad(y, x, upstream)[0] for y in runs)
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("kernels")
def test_the_sum_alone_of_an_infinite_maximum() -> None:
    x = torch.ones(1, 2, 4, 3).index_fill(2, torch.tensor([1]), torch.inf).requires_grad_()
    total = skelops.temporal_max_pool(x, torch.ones(2), torch.zeros(2), stats=True).sum
    (grad,) = torch.autograd.grad(total, x, torch.ones_like(total))
    expected = torch.tensor([0.0, 3.0, 1.0, 0.0])[:, None].expand_as(grad)
    torch.testing.assert_close(grad, expected, rtol=0, atol=0)


def test_compiles_in_float64() -> None:
    """Which the reference serves: there, a compiled gradient runs below autograd."""
    compiled = torch.compile(skelops.temporal_max_pool, fullgraph=True, backend="aot_eager")
    leaves = [x.double().requires_grad_() for x in make((2, 6, 5, 3))]
    found, expected = (torch.autograd.grad(run(*leaves).square().sum(), leaves) for run in (compiled, eager))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck() -> None:
    inputs = [x.double().requires_grad_() for x in make((2, 3, 5, 2))]
    assert torch.autograd.gradcheck(skelops.temporal_max_pool, inputs)
    assert torch.autograd.gradcheck(lambda *args: skelops.temporal_max_pool(*args, stride=2, stats=True), inputs)


@pytest.mark.parametrize("stats", [False, True], ids=["plain", "stats"])
def test_opcheck(stats: bool) -> None:
    x, scale, shift = (x.requires_grad_() for x in make((2, 4, 5, 3)))
    for map_ in (x, x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()):
        torch.library.opcheck(torch.ops.skelops.temporal_max_pool.default, (map_, scale, shift, 2, stats))


def test_compiles_whole() -> None:
    compiled = torch.compile(skelops.temporal_max_pool, fullgraph=True, dynamic=True)
    for B in (2, 5):
        leaves = [x.requires_grad_() for x in make((B, 8, 6, 25))]
        y = compiled(*leaves)
        torch.testing.assert_close(y, skelops.temporal_max_pool(*leaves))
        torch.autograd.grad(y.square().sum(), leaves)


def test_autocast_keeps_the_normalisation() -> None:
    x, scale, shift = make((2, 8, 6, 25))
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        y = skelops.temporal_max_pool(x, scale, shift)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), eager(x, scale, shift), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x: expected shape \(B, C, T, V\), got \(2, 3, 4\)"),
        ({"x": torch.zeros(2, 6, 0, 25)}, "x: expected at least one channel, frame and joint"),
        ({"scale": torch.zeros(5)}, r"scale: expected shape \(C\) with C=6, got \(5,\)"),
        ({"shift": torch.zeros(7)}, r"shift: expected shape \(C\) with C=6, got \(7,\)"),
        ({"stride": 0}, "stride: expected a positive integer, got 0"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    good = {"x": torch.zeros(2, 6, 4, 25), "scale": torch.zeros(6), "shift": torch.zeros(6), "stride": 1}
    with pytest.raises(ValueError, match=f"^{message}"):
        skelops.temporal_max_pool(**{**good, **change})
