"""aggregate against eager PyTorch: adjacency patterns, layouts, dtypes, gradients, and what the compiler sees of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import GPU, check_against_eager
from torch import Tensor

import skelops
from skelops import _backend
from skelops.ops.aggregate import AXES

# B, K, C, T, V, W
SHAPES = [
    (2, 3, 16, 5, 25, 25),
    (3, 2, 33, 9, 20, 17),
    (2, 13, 3, 2, 25, 75),
    (1, 3, 40, 11, 1, 6),
    (1, 1, 9, 2, 17, 1),
    (0, 3, 4, 3, 5, 25),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
#: Pattern of the adjacency and axis.
FORMS = [*((axes, "joints") for axes in AXES), ("kvw", "frames"), ("bkvw", "frames")]


def eager(x: Tensor, adjacency: Tensor, axes: str, sum_subsets: bool, axis: str = "joints") -> Tensor:
    """The einsum of the formula; n is the target frame."""
    features = "bkctv" if x.dim() == 5 else "bctv"
    result = "bctw" if sum_subsets else "bkctw"
    if axis == "frames":
        axes, result = axes.replace("vw", "tn"), result.replace("tw", "nv")
    return torch.einsum(f"{features},{axes}->{result}", x, adjacency)


def make(
    shape: tuple[int, ...],
    axes: str,
    axis: str = "joints",
    per_subset: bool = False,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    B, K, C, T, V, W = shape
    if _backend._forced == "triton" and not GPU:  # the interpreter runs every program in Python
        B, K, C, T, W = min(B, 2), min(K, 2), min(C, 5), min(T, 3), min(W, 40)
        V = V if axis == "joints" else min(V, 9)
    sizes = {"b": B, "k": K, "c": C, "t": T, "v": V if axis == "joints" else T, "w": W}
    x = torch.randn(B, K * C if per_subset else C, T, V).to(dtype)
    edges = torch.randn([sizes[letter] for letter in axes]) / max(sizes["v"], 1) ** 0.5
    return [x.unflatten(1, (K, C)) if per_subset else x, edges.to(dtype)]


def in_format(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    if x.dim() == 4:
        return x.contiguous(memory_format=memory_format)
    return x.flatten(1, 2).contiguous(memory_format=memory_format).unflatten(1, x.shape[1:3])


def has_format(x: Tensor, memory_format: torch.memory_format) -> bool:
    return x.numel() == 0 or (x.flatten(1, 2) if x.dim() == 5 else x).is_contiguous(memory_format=memory_format)


@pytest.mark.every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids="-".join)
@pytest.mark.parametrize("per_subset", [False, True], ids=["shared", "per_subset"])
@pytest.mark.parametrize("sum_subsets", [False, True], ids=["each", "sum"])
@pytest.mark.usefixtures("kernels")
def test_matches_eager(shape: tuple[int, ...], form: tuple[str, str], per_subset: bool, sum_subsets: bool) -> None:
    axes, axis = form
    if _backend._forced == "triton" and not GPU and shape not in SHAPES[1:3]:
        pytest.skip("Triton's interpreter is slow")
    for memory_format in FORMATS:
        x, adjacency = make(shape, axes, axis, per_subset)
        x = in_format(x, memory_format)
        setting = {"axes": axes, "sum_subsets": sum_subsets, "axis": axis}
        check_against_eager(
            partial(skelops.aggregate, **setting), partial(eager, **setting), [x, adjacency], differentiable=(0, 1)
        )
        x.requires_grad_()
        y = skelops.aggregate(x, adjacency, **setting)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert has_format(y, memory_format)
        assert has_format(grad, memory_format)


@pytest.mark.every_level
@pytest.mark.parametrize("form", FORMS, ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("per_subset", [False, True], ids=["shared", "per_subset"])
@pytest.mark.usefixtures("kernels")
def test_16_bits(form: tuple[str, str], dtype: torch.dtype, per_subset: bool) -> None:
    axes, axis = form
    for memory_format in FORMATS:
        x, adjacency = make((2, 3, 35, 9, 25, 20), axes, axis, per_subset, dtype)
        setting = {"axes": axes, "sum_subsets": per_subset, "axis": axis}
        inputs = [in_format(x, memory_format), adjacency]
        check_against_eager(
            partial(skelops.aggregate, **setting), partial(eager, **setting), inputs, differentiable=(0, 1)
        )


@pytest.mark.parametrize("wanted", [(0,), (1,)], ids=["x", "adjacency"])
@pytest.mark.parametrize("axes", AXES)
def test_subsets_of_gradients(wanted: tuple[int, ...], axes: str) -> None:
    setting = {"axes": axes, "sum_subsets": False}
    inputs = make((3, 2, 6, 9, 25, 20), axes)
    check_against_eager(partial(skelops.aggregate, **setting), partial(eager, **setting), inputs, differentiable=wanted)


@pytest.mark.parametrize("view", ["slice", "permuted", "sliced", "expanded"])
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.usefixtures("kernels")
def test_strides(view: str, axes: str) -> None:
    x, adjacency = make((3, 2, 8, 5, 25, 20), axes)
    (B, C, T, V), W = x.shape, adjacency.shape[-1]
    x = {
        "slice": torch.randn(B, 50, T, V).contiguous(memory_format=torch.channels_last)[:, 5 : 5 + C],
        "permuted": x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "sliced": torch.randn(B, 2 * C, T, 30)[:, ::2, :, 3:28],
        "expanded": x[:1].expand(B, C, T, V),
    }[view]
    for edges in (
        adjacency.movedim(-1, 0).contiguous().movedim(0, -1),
        torch.randn(*adjacency.shape[:-1], 30)[..., :W],
    ):
        setting = {"axes": axes, "sum_subsets": False}
        results = []
        for function in (skelops.aggregate, eager):
            leaves = [value.detach().requires_grad_() for value in (x, edges)]
            y = function(*leaves, **setting)
            results.append((y, *torch.autograd.grad(y.sum(), leaves)))  # sum: an upstream gradient of stride 0
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("form", FORMS, ids="-".join)
@pytest.mark.parametrize("per_subset", [False, True], ids=["shared", "per_subset"])
@pytest.mark.parametrize("sum_subsets", [False, True], ids=["each", "sum"])
def test_gradcheck(form: tuple[str, str], per_subset: bool, sum_subsets: bool) -> None:
    axes, axis = form
    inputs = [x.double().requires_grad_() for x in make((2, 2, 3, 2, 4, 3), axes, axis, per_subset)]
    function = partial(skelops.aggregate, axes=axes, sum_subsets=sum_subsets, axis=axis)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("per_subset", [False, True], ids=["shared", "per_subset"])
@pytest.mark.parametrize("frames", [False, True], ids=["joints", "frames"])
def test_opcheck(per_subset: bool, frames: bool) -> None:
    x = torch.randn(2, 4 if per_subset else 2, 3, 25)
    adjacency = torch.randn(2, 2, 1, 1, 3 if frames else 25, 7, requires_grad=True)
    for memory_format in FORMATS:
        leaf = x.contiguous(memory_format=memory_format).requires_grad_()
        torch.library.opcheck(torch.ops.skelops.aggregate.default, (leaf, adjacency, per_subset, False, frames))
        if per_subset:
            torch.library.opcheck(torch.ops.skelops.aggregate.default, (leaf, adjacency, True, True, frames))


@pytest.mark.parametrize("axes", AXES)
def test_compiles_whole(axes: str) -> None:
    function = partial(skelops.aggregate, axes=axes, sum_subsets=False)
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for B in (2, 5):
        leaves = [x.requires_grad_() for x in make((B, 3, 8, 6, 25, 20), axes)]
        results = []
        for run in (compiled, function):
            y = run(*leaves)
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_autocast() -> None:
    x, adjacency = make((2, 3, 8, 5, 25, 25), "bkvw")
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        y = skelops.aggregate(x, adjacency, axes="bkvw", sum_subsets=False)
    assert y.dtype == torch.bfloat16
    expected = skelops.aggregate(x.bfloat16(), adjacency.bfloat16(), axes="bkvw", sum_subsets=False)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("axes", ["kvw", "bkcvw"])
def test_repeats_bit_for_bit(axes: str) -> None:
    inputs = [x.requires_grad_() for x in make((8, 3, 64, 20, 25, 25), axes)]
    runs = []
    for _ in range(3):
        y = skelops.aggregate(*inputs, axes=axes, sum_subsets=False)
        runs.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("axes", AXES)
def test_non_finite_values_spread_as_in_eager(axes: str) -> None:
    x, adjacency = make((2, 2, 20, 4, 25, 17), axes)
    x[0, 3, 2, 11] = float("nan")
    ours, theirs = (f(x, adjacency, axes=axes, sum_subsets=False) for f in (skelops.aggregate, eager))
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert ours.isnan().any()


def test_one_sample_keeps_the_axes_apart() -> None:
    """Sizes of 1 look like axes that the adjacency lacks."""
    for axes in AXES:
        for shape in ((1, 2, 5, 3, 6, 4), (2, 1, 1, 3, 6, 4), (2, 2, 5, 1, 6, 4), (1, 1, 1, 1, 6, 4)):
            inputs = make(shape, axes)
            ours, theirs = (f(*inputs, axes=axes, sum_subsets=False) for f in (skelops.aggregate, eager))
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_double_backward_is_refused() -> None:
    inputs = [x.requires_grad_() for x in make((1, 2, 4, 2, 5, 5), "kvw")]
    y = skelops.aggregate(*inputs, axes="kvw", sum_subsets=True)
    (grad,) = torch.autograd.grad(y.square().sum(), inputs[1], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_bad_input() -> None:
    x, adjacency = make((2, 3, 4, 5, 25, 25), "kvw")
    cases = [
        ((x, adjacency, "vwk"), {}, ValueError, r"axes: expected one of 'kvw', .*, got 'vwk'"),
        ((x, adjacency, "kvw"), {"axis": "time"}, ValueError, r"axis: expected one of 'joints', 'frames', got 'time'"),
        ((x, adjacency, "bktvw"), {"axis": "frames"}, ValueError, r"axes: expected 'kvw' or 'bkvw' with axis='frames'"),
        ((x[0, 0], adjacency, "kvw"), {}, ValueError, r"x: expected shape \(B, C, T, V\) or \(B, K, C, T, V\), got"),
        ((x, adjacency[:, :20], "kvw"), {}, ValueError, r"adjacency: expected shape \(K, V, W\) with V=25, got"),
        ((x, adjacency, "bkvw"), {}, ValueError, r"adjacency: expected shape \(B, K, V, W\)"),
        ((x[:, None], adjacency, "kvw"), {}, ValueError, r"adjacency: expected shape \(K, V, W\) with .*K=1"),
        ((x, adjacency, "kvw"), {"axis": "frames"}, ValueError, r"adjacency: expected shape \(K, T, S\) with .*T=5"),
        ((x.long(), adjacency, "kvw"), {}, TypeError, r"x: expected a float tensor, got torch.int64"),
        ((x, adjacency.half(), "kvw"), {}, TypeError, r"adjacency: expected torch.float32 as x, got torch.float16"),
        ((x, 1.0, "kvw"), {}, TypeError, r"adjacency: expected a tensor, got float"),
        ((x, adjacency.to("meta"), "kvw"), {}, ValueError, r"adjacency: expected device .* as x, got meta"),
    ]
    for (features, edges, axes), setting, error, message in cases:
        with pytest.raises(error, match=message):
            skelops.aggregate(features, edges, axes=axes, sum_subsets=True, **setting)
