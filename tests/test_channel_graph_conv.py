"""channel_graph_conv against eager PyTorch: shapes, layouts, dtypes, gradients, and what the compiler sees of it."""

from __future__ import annotations

import pytest
import torch
from conftest import GPU, check_against_eager, run_with_gradients
from torch import Tensor
from torch.nn.functional import conv2d

import skelops
from skelops import _backend
from skelops._stats import MapStats

# B, K, C, R, T, V
SHAPES = [
    (2, 3, 16, 8, 5, 25),
    (2, 3, 33, 4, 3, 20),
    (1, 3, 40, 16, 11, 25),
    (2, 2, 9, 5, 1, 17),
    (2, 1, 3, 8, 3, 1),
    (1, 2, 10, 32, 2, 25),
    (1, 2, 10, 3, 4, 40),
    (0, 3, 4, 3, 5, 25),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ALL = range(7)
ALPHA = 5
#: The gradient of alpha is one number, of which eager may hit the last bit by luck: it has a test of its own.
JUDGED = [i for i in ALL if i != ALPHA]


def eager(
    x: Tensor, query: Tensor, key: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, adjacency: Tensor
) -> Tensor:
    """A unit of CTR-GCN with its indices swapped: subset after subset."""
    y: Tensor | None = None
    for k, features in enumerate(x.chunk(weight.shape[0], 1)):
        differences = torch.tanh(query[:, k, :, None, :] - key[:, k, :, :, None])
        topology = conv2d(differences, weight[k, :, :, None, None], bias[k]) * alpha + adjacency[k]
        part = torch.einsum("ncvw,nctv->nctw", topology, features)
        y = part if y is None else y + part
    assert y is not None
    return y


def fused_stats(*inputs: Tensor) -> MapStats:
    return skelops.channel_graph_conv(*inputs, stats=True)


def in_float32(stats: MapStats) -> tuple[Tensor, ...]:
    """Kernels add up float32 before they come to float64: the sums are judged as float32."""
    return stats.output, stats.sum.float(), stats.square_sum.float()


def fused_sums(*inputs: Tensor) -> tuple[Tensor, ...]:
    return in_float32(fused_stats(*inputs))


def eager_sums(*inputs: Tensor) -> tuple[Tensor, ...]:
    y = eager(*inputs)
    return in_float32(MapStats(y, y.double().sum((0, 2, 3)), y.double().square().sum((0, 2, 3))))


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    B, K, C, R, T, V = shape
    if _backend._forced == "triton" and not GPU:  # the interpreter runs every frame of every program in Python
        C, R, T = min(C, 6), min(R, 2), min(T, 2)
    inputs = [
        torch.randn(B, K * C, T, V),
        torch.randn(B, K, R, V),
        torch.randn(B, K, R, V),
        torch.randn(K, C, R) / R**0.5,
        torch.randn(K, C),
        torch.rand(1),
        torch.randn(K, V, V) / V**0.5,
    ]
    return [x.to(dtype) for x in inputs]


@pytest.mark.every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_matches_eager(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    inputs = make(shape, dtype)
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)
    check_against_eager(skelops.channel_graph_conv, eager, inputs, differentiable=JUDGED)
    x = inputs[0].requires_grad_()
    y = skelops.channel_graph_conv(*inputs)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.is_contiguous(memory_format=memory_format) or y.numel() == 0
    assert grad.is_contiguous(memory_format=memory_format) or y.numel() == 0


@pytest.mark.every_level
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("kernels")
def test_stats(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    inputs = make((2, 3, 35, 2, 4, 25), dtype)
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)
    output, total, squares = skelops.channel_graph_conv(*inputs, stats=True)
    torch.testing.assert_close(output, skelops.channel_graph_conv(*inputs), atol=0, rtol=0)
    assert total.dtype == squares.dtype == torch.float64
    wide = output.double()
    rounding = torch.finfo(dtype).eps * output.numel() ** 0.5 * 4
    torch.testing.assert_close(total, wide.sum((0, 2, 3)), atol=rounding, rtol=1e-5)
    torch.testing.assert_close(squares, wide.square().sum((0, 2, 3)), atol=rounding, rtol=max(1e-5, rounding / 50))


@pytest.mark.every_level
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_stats_far_from_zero_are_exact(memory_format: torch.memory_format) -> None:
    """A BatchNorm takes the difference of E[x^2] and E[x]^2: few floats are added before the sum goes into a double."""
    x = (10 + torch.randn(2, 40, 64, 25)).contiguous(memory_format=memory_format)
    no_topology = torch.zeros(2, 1, 2, 25), torch.zeros(2, 1, 2, 25), torch.zeros(1, 40, 2), torch.zeros(1, 40)
    stats = skelops.channel_graph_conv(x, *no_topology, torch.zeros(1), torch.eye(25)[None], stats=True)
    wide = stats[0].double()
    torch.testing.assert_close(stats[1], wide.sum((0, 2, 3)), atol=0, rtol=1e-7)
    torch.testing.assert_close(stats[2], wide.square().sum((0, 2, 3)), atol=0, rtol=1e-7)


@pytest.mark.every_level
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[::2], ids=str)
@pytest.mark.usefixtures("kernels")
def test_gradients_through_stats(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    inputs = make((2, 3, 35, 2, 4, 25), dtype)
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)
    check_against_eager(fused_sums, eager_sums, inputs, differentiable=JUDGED)


@pytest.mark.parametrize("stats", [False, True], ids=["plain", "stats"])
@pytest.mark.usefixtures("kernels")
def test_gradient_of_alpha(stats: bool) -> None:
    ours, theirs = (fused_sums, eager_sums) if stats else (skelops.channel_graph_conv, eager)
    errors = []
    for _ in range(6):
        inputs = make((2, 2, 18, 3, 5, 20))
        (_, truth), (_, low), (_, result) = (
            run_with_gradients(function, [x.to(dtype) for x in inputs], [ALPHA])
            for function, dtype in ((theirs, torch.float64), (theirs, torch.float32), (ours, torch.float32))
        )
        errors.append([(value.double() - truth[0]).square().item() for value in (result[0], low[0])])
    of_ours, of_theirs = torch.tensor(errors).mean(0).sqrt()
    assert of_ours <= 2 * of_theirs + 1e-6


@pytest.mark.parametrize("part", [1, 2], ids=["sum", "square_sum"])
@pytest.mark.usefixtures("kernels")
def test_gradient_of_one_sum_alone(part: int) -> None:
    check_against_eager(
        lambda *inputs: fused_sums(*inputs)[part],
        lambda *inputs: eager_sums(*inputs)[part],
        make((2, 2, 18, 3, 5, 20)),
        differentiable=JUDGED,
    )


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (0, 5), (1, 2)], ids=str)
def test_subsets_of_gradients(wanted: tuple[int, ...]) -> None:
    check_against_eager(skelops.channel_graph_conv, eager, make((3, 2, 18, 4, 9, 25)), differentiable=wanted)


@pytest.mark.parametrize("view", ["slice", "permuted", "sliced", "expanded", "offset"])
@pytest.mark.usefixtures("kernels")
def test_strides(view: str) -> None:
    x, *others = make((3, 3, 12, 4, 9, 25))
    B, C, T, V = x.shape
    x = {
        "slice": torch.randn(B, 50, T, V).contiguous(memory_format=torch.channels_last)[:, 5 : 5 + C],
        "permuted": x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "sliced": torch.randn(B, 2 * C, T, 30)[:, ::2, :, 3:28],
        "expanded": x[:1].expand(B, C, T, V),
        "offset": torch.randn(x.numel() + 3)[3:].view(x.shape),
    }[view]
    others = [value.movedim(-1, 0).contiguous().movedim(0, -1) for value in others]
    torch.testing.assert_close(skelops.channel_graph_conv(x, *others), eager(x, *others), atol=1e-4, rtol=1e-4)
    leaves = [value.detach().requires_grad_() for value in (x, *others)]
    for ours, theirs in zip(
        torch.autograd.grad(skelops.channel_graph_conv(*leaves).sum(), leaves),  # sum: a gradient of stride 0
        torch.autograd.grad(eager(*leaves).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.every_level
@pytest.mark.parametrize("size", [1e-6, 0.3, 0.62, 0.63, 3.0, 50.0, 1e30], ids=str)
def test_tanh_is_accurate_at_every_size(size: float) -> None:
    """One joint, one channel of weight 1: y is tanh itself."""
    differences = torch.cat([torch.linspace(-size, size, 301)])
    one = torch.ones(1, 1)
    y = skelops.channel_graph_conv(
        torch.ones(301, 1, 1, 1),
        differences.view(301, 1, 1, 1),
        torch.zeros(301, 1, 1, 1),
        one[None],
        0 * one,
        one[0],
        0 * one[None],
    )
    torch.testing.assert_close(y.flatten().double(), differences.double().tanh(), rtol=3e-7, atol=0)


def test_gradcheck() -> None:
    inputs = [x.double().requires_grad_() for x in make((2, 2, 3, 2, 2, 4))]
    assert torch.autograd.gradcheck(skelops.channel_graph_conv, inputs)
    assert torch.autograd.gradcheck(fused_stats, inputs)


@pytest.mark.parametrize("stats", [False, True], ids=["plain", "stats"])
def test_opcheck(stats: bool) -> None:
    x, *others = (x.requires_grad_() for x in make((2, 2, 3, 2, 2, 25)))
    for leaf in (x, x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()):
        torch.library.opcheck(torch.ops.skelops.channel_graph_conv.default, (leaf, *others, stats))


def test_compiles_whole() -> None:
    compiled = torch.compile(fused_stats, fullgraph=True, dynamic=True)
    for B in (2, 5):
        leaves = [x.requires_grad_() for x in make((B, 3, 8, 4, 6, 25))]
        results = []
        for function in (compiled, fused_stats):
            y, total, squares = function(*leaves)
            loss = y.square().sum() + total.sum() + 0.1 * squares.sum()
            results.append((y, *torch.autograd.grad(loss, leaves)))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_autocast() -> None:
    inputs = make((2, 3, 8, 4, 5, 25))
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        y, total, _ = skelops.channel_graph_conv(*inputs, stats=True)
        mixed = skelops.channel_graph_conv(inputs[0].bfloat16(), *inputs[1:])
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float64)
    torch.testing.assert_close(y, skelops.channel_graph_conv(*(x.bfloat16() for x in inputs)))
    torch.testing.assert_close(mixed, y)


@pytest.mark.parametrize("B", [1, 3])
def test_repeats_bit_for_bit(B: int) -> None:
    """With one sample, its blocks of channels are spread over the threads."""
    inputs = [x.requires_grad_() for x in make((B, 3, 96, 8, 20, 25))]
    runs = []
    for _ in range(3):
        y = skelops.channel_graph_conv(*inputs)
        runs.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))
    check_against_eager(skelops.channel_graph_conv, eager, [x.detach() for x in inputs], differentiable=JUDGED)


@pytest.mark.parametrize("which", ALL)
def test_non_finite_values_spread_as_in_eager(which: int) -> None:
    inputs = make((2, 2, 20, 3, 4, 25))
    inputs[which].view(-1)[inputs[which].numel() // 2] = float("nan")
    ours, theirs = skelops.channel_graph_conv(*inputs), eager(*inputs)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert ours.isnan().any()


def test_inputs_are_left_alone() -> None:
    inputs = make((2, 3, 16, 4, 5, 25))
    before = [x.clone() for x in inputs]
    leaves = [x.requires_grad_() for x in inputs]
    skelops.channel_graph_conv(*leaves).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))


def test_double_backward_is_refused() -> None:
    inputs = [x.requires_grad_() for x in make((1, 2, 4, 2, 2, 5))]
    (grad,) = torch.autograd.grad(skelops.channel_graph_conv(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_without_refinement_it_is_aggregate() -> None:
    inputs = make((2, 3, 16, 4, 5, 25))
    inputs[5].zero_()
    expected = skelops.aggregate(inputs[0].unflatten(1, (3, 16)), inputs[6], axes="kvw", sum_subsets=True)
    torch.testing.assert_close(skelops.channel_graph_conv(*inputs), expected, atol=1e-5, rtol=1e-5)


def test_bad_input() -> None:
    x, query, key, weight, bias, alpha, adjacency = make((2, 3, 4, 2, 5, 25))
    cases = [
        ((x[0], query, key, weight, bias, alpha, adjacency), ValueError, r"x: expected shape \(B, KC, T, V\), got"),
        ((x[:, :11], query, key, weight, bias, alpha, adjacency), ValueError, r"x: expected K\*C=3\*4 .* got 11"),
        ((x, query[..., :20], key, weight, bias, alpha, adjacency), ValueError, r"query: .*V=25.* got \(2, 3, 2, 20\)"),
        ((x, query, key[:, :2], weight, bias, alpha, adjacency), ValueError, r"key: .*K=3.* got \(2, 2, 2, 25\)"),
        ((x, query, key, weight[..., :1], bias, alpha, adjacency), ValueError, r"weight: .*R=2.* got \(3, 4, 1\)"),
        ((x, query, key, weight, bias[:, :1], alpha, adjacency), ValueError, r"bias: .*C=4.* got \(3, 1\)"),
        ((x, query, key, weight, bias, adjacency[0, 0], adjacency), ValueError, r"alpha: expected shape \(1\), got"),
        ((x, query, key, weight, bias, alpha, adjacency[:2]), ValueError, r"adjacency: .*K=3.* got \(2, 25, 25\)"),
        ((x.long(), query, key, weight, bias, alpha, adjacency), TypeError, r"x: expected a float tensor, got"),
        ((x, query.half(), key, weight, bias, alpha, adjacency), TypeError, r"query: expected torch.float32 as x"),
        ((x, query, key, weight, bias, 0.5, adjacency), TypeError, r"alpha: expected a tensor, got float"),
        ((x, query, key, weight, bias, alpha, adjacency.to("meta")), ValueError, r"adjacency: expected device .* meta"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            skelops.channel_graph_conv(*arguments)
