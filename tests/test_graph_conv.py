"""graph_conv against eager PyTorch: forms, layouts, dtypes, gradients, and what the compiler sees of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import assert_no_worse, check_against_eager, flatten
from torch import Tensor

import skelops
from skelops.ops.graph_conv import reference

# B, C, O, T, V, K
SHAPES = [
    (2, 3, 16, 5, 25, 3),
    (3, 16, 16, 13, 20, 3),
    (2, 64, 32, 8, 25, 1),
    (1, 9, 14, 1, 17, 2),
    (2, 10, 5, 3, 1, 5),
    (1, 33, 70, 2, 64, 2),
    (2, 20, 36, 7, 18, 8),
    (1, 4, 6, 2, 75, 13),
    (0, 3, 8, 4, 25, 3),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def eager(x: Tensor, weight: Tensor, adjacency: Tensor, bias: Tensor | None = None) -> Tensor:
    return reference.graph_conv(x, weight, adjacency, bias, False)[0]


def eager_stats(x: Tensor, weight: Tensor, adjacency: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    return judged(reference.graph_conv(x, weight, adjacency, bias, True))


def fused_stats(*args: Tensor) -> tuple[Tensor, ...]:
    return judged(skelops.graph_conv(*args, stats=True))


def judged(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Sums of a float32 map hold float32's error, whatever their dtype, and are judged as such."""
    y, *sums = results
    return y, *(total.to(torch.promote_types(y.dtype, torch.float32)) for total in sums)


def make(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, per_sample: bool = False, sparse: bool = False
) -> list[Tensor]:
    B, C, O, T, V, K = shape
    adjacency = torch.randn((B, K, V, V) if per_sample else (K, V, V)) / V**0.5
    if sparse:
        adjacency *= torch.rand(adjacency.shape) < 0.1
    inputs = [torch.randn(B, C, T, V), torch.randn(K, O, C) / C**0.5, adjacency, torch.randn(K, O)]
    return [x.to(dtype) for x in inputs]


@pytest.mark.every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_sample", [False, True], ids=["static", "per_sample"])
@pytest.mark.usefixtures("kernels")
def test_matches_eager(shape: tuple[int, ...], dtype: torch.dtype, per_sample: bool) -> None:
    check_against_eager(skelops.graph_conv, eager, make(shape, dtype, per_sample), differentiable=(0, 1, 2, 3))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("per_sample", [False, True], ids=["static", "per_sample"])
@pytest.mark.usefixtures("kernels")
def test_bias_of_the_output(shape: tuple[int, ...], per_sample: bool) -> None:
    inputs = make(shape, per_sample=per_sample)
    inputs[3] = inputs[3][0]
    check_against_eager(skelops.graph_conv, eager, inputs, differentiable=(0, 1, 2, 3))
    plain = skelops.graph_conv(*inputs[:3])
    torch.testing.assert_close(skelops.graph_conv(*inputs), plain + inputs[3][:, None, None], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("per_sample", [False, True], ids=["static", "per_sample"])
def test_sparse_adjacency_matches_eager(shape: tuple[int, ...], dtype: torch.dtype, per_sample: bool) -> None:
    inputs = make(shape, dtype, per_sample, sparse=True)
    check_against_eager(skelops.graph_conv, eager, inputs, differentiable=(0, 1, 2, 3))


@pytest.mark.every_level
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.usefixtures("kernels")
def test_formats(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, with_bias: bool
) -> None:
    inputs = make(shape, dtype)[: 4 if with_bias else 3]
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)
    check_against_eager(skelops.graph_conv, eager, inputs, differentiable=range(len(inputs)))
    x = inputs[0].requires_grad_()
    y = skelops.graph_conv(*inputs)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.is_contiguous(memory_format=memory_format)
    assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("kernels")
def test_stats(dtype: torch.dtype) -> None:
    inputs = make((3, 5, 19, 7, 25, 3), dtype)
    output, total, squares = skelops.graph_conv(*inputs, stats=True)
    wide = output.double()
    assert total.dtype == squares.dtype == torch.float64
    rounding = torch.finfo(dtype).eps * output.numel() ** 0.5 * 4
    torch.testing.assert_close(total.double(), wide.sum((0, 2, 3)), atol=rounding, rtol=1e-5)
    torch.testing.assert_close(
        squares.double(), wide.square().sum((0, 2, 3)), atol=rounding, rtol=max(1e-5, rounding / 50)
    )


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.usefixtures("kernels")
def test_gradients_through_the_stats(
    dtype: torch.dtype, memory_format: torch.memory_format, used: tuple[int, ...]
) -> None:
    inputs = make((2, 5, 19, 3, 20, 2), dtype)
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)

    def keeping(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., list[Tensor]]:
        return lambda *args: [part for i, part in enumerate(function(*args)) if i in used]

    check_against_eager(keeping(fused_stats), keeping(eager_stats), inputs, differentiable=(0, 1, 2, 3), factor=3)


@pytest.mark.every_level
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)], ids=str)
@pytest.mark.usefixtures("kernels")
def test_subsets_of_gradients_through_the_stats(wanted: tuple[int, ...]) -> None:
    check_against_eager(fused_stats, eager_stats, make((3, 6, 8, 5, 25, 3)), differentiable=wanted, factor=3)


@pytest.mark.every_level
def test_batch_norm_from_the_stats() -> None:
    """Normalised by its own sums, a map far from zero has the gradients of torch's batch_norm."""
    inputs = make((8, 6, 16, 9, 25, 3))
    inputs[3] = inputs[3] + 5

    def fused(*args: Tensor) -> Tensor:
        y, total, squares = skelops.graph_conv(*args, stats=True)
        mean = total / (y.numel() / y.shape[1])
        variance = squares / (y.numel() / y.shape[1]) - mean.square()
        scale = (variance + 1e-5).rsqrt()
        return y * scale.to(y)[:, None, None] - (mean * scale).to(y)[:, None, None]

    def plain(*args: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(eager(*args), None, None, training=True)

    check_against_eager(fused, plain, inputs, differentiable=(0, 1, 2), factor=5)


@pytest.mark.every_level
def test_stats_of_many_elements_are_exact() -> None:
    """The variance of a map with mean 100 and deviation 1 survives E[x^2] - E[x]^2."""
    x = torch.randn(64, 3, 50, 25)
    output, total, squares = skelops.graph_conv(
        x, torch.eye(3)[None], torch.eye(25)[None], torch.full((1, 3), 100.0), stats=True
    )
    count = 64 * 50 * 25
    torch.testing.assert_close(
        squares / count - (total / count).square(),
        output.double().var((0, 2, 3), unbiased=False),
        atol=1e-3,
        rtol=0,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("kernels")
def test_slices_of_channels_are_read_in_place(dtype: torch.dtype) -> None:
    """A slice of the channels of a channels_last map, as x and as the gradient that comes in."""
    wide, weight, adjacency, bias = make((3, 50, 20, 5, 25, 3), dtype)
    whole = wide.contiguous(memory_format=torch.channels_last)
    upstream = torch.randn(3, 50, 5, 25).to(dtype).contiguous(memory_format=torch.channels_last)

    def sliced(function: Callable[..., Tensor | tuple[Tensor, ...]]) -> Callable[..., list[Tensor]]:
        def run(x: Tensor, *parameters: Tensor) -> list[Tensor]:
            x = x[:, 7:23]
            y, *sums = flatten(function(x, *parameters))
            given = [upstream[:, 11:31].to(y.dtype), *(torch.ones_like(part) for part in sums)]
            return [y.detach(), *torch.autograd.grad([y, *sums], [x, *parameters], given)]

        return run

    weight = weight[:, :, :16]
    inputs = [
        whole.requires_grad_(),
        weight.detach().requires_grad_(),
        adjacency.requires_grad_(),
        bias.requires_grad_(),
    ]
    for ours, theirs in ((skelops.graph_conv, eager), (fused_stats, eager_stats)):
        truth = sliced(theirs)(*(x.detach().double().requires_grad_() for x in inputs))
        for i, (a, b, c) in enumerate(zip(sliced(ours)(*inputs), sliced(theirs)(*inputs), truth, strict=True)):
            assert_no_worse(a, b, c, f"result {i}", factor=3)
        assert sliced(ours)(*inputs)[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)], ids=str)
@pytest.mark.parametrize("per_sample", [False, True], ids=["static", "per_sample"])
def test_subsets_of_gradients(wanted: tuple[int, ...], per_sample: bool) -> None:
    check_against_eager(
        skelops.graph_conv, eager, make((3, 6, 8, 9, 25, 3), per_sample=per_sample), differentiable=wanted
    )


@pytest.mark.parametrize("view", ["permuted", "sliced", "expanded", "offset"])
@pytest.mark.usefixtures("kernels")
def test_strides(view: str) -> None:
    x, weight, adjacency, bias = make((4, 6, 8, 9, 25, 3))
    x = {
        "permuted": x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "sliced": torch.randn(4, 12, 9, 30)[:, ::2, :, 3:28],
        "expanded": x[:1].expand(4, 6, 9, 25),
        "offset": torch.randn(4 * 6 * 9 * 25 + 3)[3:].view(4, 6, 9, 25),
    }[view]
    inputs = [x, weight.transpose(1, 2).contiguous().transpose(1, 2), adjacency.mT, bias]
    torch.testing.assert_close(skelops.graph_conv(*inputs), eager(*inputs), atol=1e-4, rtol=1e-4)
    leaves = [i.detach().requires_grad_() for i in inputs]
    for ours, theirs in zip(
        torch.autograd.grad(skelops.graph_conv(*leaves).sum(), leaves),  # sum: an upstream gradient of stride 0
        torch.autograd.grad(eager(*leaves).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_gradcheck() -> None:
    for per_sample in (False, True):
        inputs = [x.double().requires_grad_() for x in make((2, 3, 4, 2, 5, 2), per_sample=per_sample)]
        assert torch.autograd.gradcheck(skelops.graph_conv, inputs)
        assert torch.autograd.gradcheck(skelops.graph_conv, [*inputs[:3], inputs[3][0].detach().requires_grad_()])
        assert torch.autograd.gradcheck(fused_stats, inputs)


@pytest.mark.parametrize("per_sample", [False, True], ids=["static", "per_sample"])
@pytest.mark.parametrize("stats", [False, True], ids=["plain", "stats"])
def test_opcheck(per_sample: bool, stats: bool) -> None:
    inputs = [x.requires_grad_() for x in make((2, 3, 4, 2, 25, 2), per_sample=per_sample)]
    for x in (inputs[0], inputs[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()):
        torch.library.opcheck(torch.ops.skelops.graph_conv.default, (x, *inputs[1:], stats))
        torch.library.opcheck(torch.ops.skelops.graph_conv.default, (x, *inputs[1:3], None, stats))


def test_compiles_whole() -> None:
    compiled = torch.compile(skelops.graph_conv, fullgraph=True, dynamic=True)
    for B in (2, 5):
        leaves = [x.requires_grad_() for x in make((B, 3, 8, 6, 25, 3))]
        y = compiled(*leaves)
        torch.testing.assert_close(y, skelops.graph_conv(*leaves))
        for ours, theirs in zip(
            torch.autograd.grad(y.square().sum(), leaves),
            torch.autograd.grad(skelops.graph_conv(*leaves).square().sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_autocast() -> None:
    """Maps and adjacencies are cast, weights in the kernel; no worse than eager, which casts weights, too."""
    inputs = make((2, 8, 16, 5, 25, 3))
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        y = skelops.graph_conv(*inputs)
    assert y.dtype == torch.bfloat16
    low = [x.bfloat16() for x in inputs]
    assert_no_worse(y, eager(*low), eager(*(x.double() for x in low)))
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        mixed = skelops.graph_conv(inputs[0].bfloat16(), *inputs[1:])
    torch.testing.assert_close(mixed, y)


@pytest.mark.parametrize("kernels", ["cpu"], indirect=True)
@pytest.mark.usefixtures("kernels")
def test_autocast_does_not_round_gradients_of_weights() -> None:
    """On the CPU, whose kernel takes a weight of float32 beside maps of 16 bits."""
    x, weight, adjacency, _ = (x.requires_grad_() for x in make((2, 32, 32, 13, 25, 3)))
    with torch.autocast("cpu", torch.bfloat16):
        y = skelops.graph_conv(x, weight, adjacency)
    (gradient,) = torch.autograd.grad(y.float().square().sum(), weight)
    assert not torch.equal(gradient, gradient.bfloat16().float())


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_autocast_of_the_sums_alone(backend: str) -> None:
    x, weight, A = torch.randn(2, 4, 3, 5), torch.randn(2, 6, 4).requires_grad_(), torch.rand(2, 5, 5)
    with skelops.backend(backend), torch.autocast(torch.get_default_device().type, torch.bfloat16):
        total = skelops.graph_conv(x, weight, A, stats=True)[1]
        (grad,) = torch.autograd.grad(total.sum(), weight)
    expected = torch.autograd.grad(skelops.graph_conv(x, weight, A).sum(), weight)[0]
    torch.testing.assert_close(grad, expected, rtol=0.05, atol=0.5)


def test_repeats_bit_for_bit() -> None:
    inputs = [x.requires_grad_() for x in make((8, 64, 64, 50, 25, 3))]
    runs = []
    for _ in range(3):
        y = skelops.graph_conv(*inputs)
        runs.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_non_finite_values_spread_as_in_eager(value: float) -> None:
    """0 * NaN is NaN: leaving out the zeros of a sparse adjacency must not hide it."""
    inputs = make((2, 20, 8, 9, 25, 3), sparse=True)
    inputs[0][0, 3, 4, 11] = value
    ours, theirs = skelops.graph_conv(*inputs), eager(*inputs)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert ours.isnan().any()


def test_inputs_are_left_alone() -> None:
    inputs = make((2, 16, 16, 5, 25, 3))
    before = [x.clone() for x in inputs]
    leaves = [x.requires_grad_() for x in inputs]
    skelops.graph_conv(*leaves).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))


def test_double_backward_is_refused() -> None:
    inputs = [x.requires_grad_() for x in make((1, 3, 4, 2, 5, 2))]
    (grad,) = torch.autograd.grad(skelops.graph_conv(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_identity_adjacency_is_a_convolution() -> None:
    x, weight, _, bias = make((2, 6, 9, 5, 25, 1))
    expected = torch.nn.functional.conv2d(x, weight[0, :, :, None, None], bias[0])
    torch.testing.assert_close(skelops.graph_conv(x, weight, torch.eye(25)[None], bias), expected, atol=1e-5, rtol=1e-5)


def test_bad_input() -> None:
    x, weight, adjacency, bias = make((2, 3, 4, 5, 25, 3))
    cases = [
        ((x[0], weight, adjacency), ValueError, r"x: expected shape \(B, C, T, V\), got \(3, 5, 25\)"),
        (
            (x, weight[:, :, :2], adjacency),
            ValueError,
            r"weight: expected shape \(K, O, C\) with .*C=3.*got \(3, 4, 2\)",
        ),
        ((x, weight, adjacency[:2]), ValueError, r"adjacency: expected shape .*K=3.* got \(2, 25, 25\)"),
        ((x, weight, adjacency[:, :20]), ValueError, r"adjacency: .*V=25"),
        (
            (x, weight, adjacency, bias[:, :1]),
            ValueError,
            r"bias: expected shape \(K, O\) or \(O\) with .*O=4.*got \(3, 1\)",
        ),
        ((x.long(), weight, adjacency), TypeError, r"x: expected a float tensor, got torch.int64"),
        ((x, weight.bfloat16(), adjacency), TypeError, r"weight: expected torch.float32 as x, got torch.bfloat16"),
        (([1.0], weight, adjacency), TypeError, r"x: expected a tensor, got list"),
        ((x, weight, adjacency.to("meta")), ValueError, r"adjacency: expected device .* as x, got meta"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            skelops.graph_conv(*arguments)
