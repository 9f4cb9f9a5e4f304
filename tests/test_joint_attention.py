"""joint_attention against eager PyTorch: axes, activations, layouts, dtypes, gradients, and what the compiler sees."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from conftest import check_against_eager
from torch import Tensor

import skelops
from skelops.ops.joint_attention import reference

# B, S, C', T, V
SHAPES = [(2, 3, 8, 5, 25), (2, 3, 10, 7, 20), (1, 2, 33, 1, 17), (2, 1, 9, 3, 1), (0, 2, 4, 3, 25)]
FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMS = [("joints", "tanh"), ("joints", "softmax"), ("frames", "tanh"), ("frames", "softmax")]


def make(
    shape: tuple[int, ...],
    axis: str = "joints",
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> list[Tensor]:
    B, S, width, T, V = shape
    P = V if axis == "joints" else T
    maps = [torch.randn(B, S * width, T, V).contiguous(memory_format=memory_format) for _ in range(2)]
    return [x.to(dtype) for x in (*maps, torch.randn(S, P, P), torch.randn(S))]


def call(
    source: Tensor, target: Tensor, static: Tensor | None = None, alpha: Tensor | None = None, *, heads: int = 2,
    **options: Any,
) -> Tensor:  # fmt: skip
    return skelops.joint_attention(source, target, static, alpha, heads=heads, **options)


def eager(
    source: Tensor, target: Tensor, static: Tensor | None = None, alpha: Tensor | None = None, *, heads: int = 2,
    axis: str = "joints", activation: str = "tanh", scale: float | None = None,
) -> Tensor:  # fmt: skip
    _, C, T, V = source.shape
    default = heads / (C * (T if axis == "joints" else V))
    return reference.joint_attention(
        source, target, static, alpha, heads, axis == "frames", activation == "softmax", scale or default
    )[0]


@pytest.mark.every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize(("axis", "activation"), FORMS)
@pytest.mark.usefixtures("kernels")
def test_matches_eager(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, axis: str, activation: str
) -> None:
    inputs = make(shape, axis, dtype, memory_format)
    # The scale makes scores of about one.
    options = {"heads": shape[1], "axis": axis, "activation": activation, "scale": 0.2}
    check_against_eager(partial(call, **options), partial(eager, **options), inputs, differentiable=range(4))
    if not shape[0]:
        return
    leaves = [x.requires_grad_() for x in inputs[:2]]
    A = call(*inputs, **options)
    for grad in torch.autograd.grad(A, leaves, torch.ones_like(A)):
        assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(("axis", "activation"), FORMS)
@pytest.mark.parametrize("given", [(), ("static",), ("alpha",)], ids=str)
@pytest.mark.usefixtures("kernels")
def test_without_static_or_alpha(axis: str, activation: str, given: tuple[str, ...]) -> None:
    source, target, static, alpha = make((2, 2, 12, 4, 20), axis)
    inputs = [source, target, static if "static" in given else None, alpha if "alpha" in given else None]
    wanted = [i for i, x in enumerate(inputs) if x is not None]
    options = {"axis": axis, "activation": activation, "scale": 0.3}
    check_against_eager(partial(call, **options), partial(eager, **options), inputs, differentiable=wanted)


@pytest.mark.every_level
@pytest.mark.parametrize(("axis", "activation"), FORMS)
def test_many_frames(axis: str, activation: str) -> None:
    """Several tiles of frames; the released scale."""
    options = {"axis": axis, "activation": activation}
    inputs = make((2, 2, 64, 60, 25), axis)
    check_against_eager(partial(call, **options), partial(eager, **options), inputs, differentiable=range(4), factor=3)


@pytest.mark.parametrize("activation", ["tanh", "softmax"])
@pytest.mark.usefixtures("kernels")
def test_many_positions(activation: str) -> None:
    """Several tiles of what attends."""
    options = {"axis": "frames", "activation": activation, "scale": 0.3}
    inputs = make((1, 2, 3, 70, 2), "frames")
    check_against_eager(partial(call, **options), partial(eager, **options), inputs, differentiable=range(4))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)], ids=str)
def test_subsets_of_gradients(wanted: tuple[int, ...]) -> None:
    check_against_eager(partial(call, scale=0.3), partial(eager, scale=0.3), make((3, 2, 8, 5, 25)), wanted)


def pitched(*maps: Tensor) -> list[Tensor]:
    """The maps as slices of the channels of one channels_last map."""
    return list(torch.cat(maps, 1).contiguous(memory_format=torch.channels_last).split(maps[0].shape[1], 1))


@pytest.mark.every_level
@pytest.mark.parametrize("axis", ["joints", "frames"])
@pytest.mark.parametrize("view", ["pitched", "mixed", "permuted", "expanded"])
@pytest.mark.usefixtures("kernels")
def test_strides(axis: str, view: str) -> None:
    source, target, static, alpha = make((2, 2, 16, 5, 25), axis)
    source, target = {
        "pitched": lambda: pitched(source, target),
        "mixed": lambda: [source.contiguous(), pitched(target, source)[0]],
        "permuted": lambda: [source.mT.contiguous().mT, target],
        "expanded": lambda: [source[:1].expand_as(source), target[:, :, :1].expand_as(target)],
    }[view]()
    leaves = [x.detach().requires_grad_() for x in (source, target, static.mT, alpha)]
    ours, theirs = (function(*leaves, axis=axis, scale=0.3) for function in (call, eager))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    # sum: an upstream gradient of stride 0
    gradients = (torch.autograd.grad(A.sum(), leaves) for A in (ours, theirs))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_source_is_target() -> None:
    x = make((2, 2, 16, 5, 25))[0].requires_grad_()
    for ours, theirs in zip(
        torch.autograd.grad(call(x, x, activation="softmax").square().sum(), x),
        torch.autograd.grad(eager(x, x, activation="softmax").square().sum(), x),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_is_the_released_forms() -> None:
    source, target, static, alpha = make((2, 2, 16, 5, 25))
    q, k = (x.unflatten(1, (2, 16)) for x in (source, target))
    dsta = torch.einsum("nsctu,nsctv->nsuv", q, k).div(16 * 5).tanh() * alpha[:, None, None] + static
    torch.testing.assert_close(call(source, target, static, alpha), dsta, atol=1e-5, rtol=1e-5)
    for s in range(2):
        rows, columns = q[:, s].permute(0, 3, 1, 2).reshape(2, 25, -1), k[:, s].reshape(2, -1, 25)
        agcn = (rows @ columns / (16 * 5)).softmax(-2)
        torch.testing.assert_close(call(source, target, activation="softmax")[:, s], agcn, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["tanh", "softmax"])
@pytest.mark.usefixtures("kernels")
def test_large_scores(activation: str) -> None:
    """Neither activation overflows; both lose their gradient as eager's do."""
    inputs = make((2, 2, 16, 5, 25))
    options = {"activation": activation, "scale": 50.0}
    A = call(*inputs, **options)
    assert A.isfinite().all()
    check_against_eager(partial(call, **options), partial(eager, **options), inputs, factor=3)


def test_gradcheck() -> None:
    for axis, activation in FORMS:
        leaves = [x.double().requires_grad_() for x in make((2, 2, 3, 4, 5), axis)]
        assert torch.autograd.gradcheck(partial(call, axis=axis, activation=activation, scale=0.4), leaves)
        assert torch.autograd.gradcheck(partial(call, axis=axis, activation=activation, scale=0.4), leaves[:2])


def test_opcheck() -> None:
    op = torch.ops.skelops.joint_attention.default
    for memory_format in FORMATS:
        for axis, activation in FORMS:
            source, target, static, alpha = (
                x.requires_grad_() for x in make((2, 2, 8, 3, 25), axis, memory_format=memory_format)
            )
            torch.library.opcheck(
                op, (source, target, static, alpha, 2, axis == "frames", activation == "softmax", 0.3)
            )
    torch.library.opcheck(op, (source, target, None, None, 2, False, False, 0.3))


def test_compiles_whole() -> None:
    compiled = torch.compile(call, fullgraph=True, dynamic=True)
    for B in (2, 5):
        leaves = [x.requires_grad_() for x in make((B, 2, 8, 6, 25))]
        y, expected = compiled(*leaves), call(*leaves)
        torch.testing.assert_close(y, expected)
        gradients = (torch.autograd.grad(z.square().sum(), leaves) for z in (y, expected))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_autocast() -> None:
    inputs = make((2, 2, 8, 6, 25))
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        leaves = [x.requires_grad_() for x in inputs]
        A = call(*inputs, scale=0.3)
    assert A.dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(A.float().square().sum(), leaves))
    rounded = [x.detach().bfloat16().float() for x in inputs[:2]]
    torch.testing.assert_close(A.float(), call(*rounded, *inputs[2:], scale=0.3), atol=2e-2, rtol=2e-2)


def test_repeats_bit_for_bit() -> None:
    leaves = [x.requires_grad_() for x in make((7, 3, 16, 40, 25))]
    first, second = ([A := call(*leaves, heads=3), *torch.autograd.grad(A.square().sum(), leaves)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_double_backward_is_refused() -> None:
    inputs = make((1, 2, 8, 2, 5))
    source = inputs[0].requires_grad_()
    (grad,) = torch.autograd.grad(call(*inputs).square().sum(), source, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_bad_input() -> None:
    source, target, static, alpha = make((2, 2, 8, 3, 25))
    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((source[0], target), {}, ValueError, r"source: expected shape \(B, C, T, V\), got \(16, 3, 25\)"),
        ((source, target[:, :8]), {}, ValueError, r"target: expected shape .*C=16.* got \(2, 8, 3, 25\)"),
        ((source, target), {"heads": 3}, ValueError, r"heads: expected a divisor of C=16, got 3"),
        ((source, target, static), {"axis": "frames"}, ValueError, r"static: expected shape \(S, T, T\) with .*T=3"),
        ((source, target, static, alpha[:1]), {}, ValueError, r"alpha: expected shape \(S\) with S=2, got \(1,\)"),
        ((source, target), {"axis": "bodies"}, ValueError, r"axis: expected one of 'joints', 'frames', got 'bodies'"),
        ((source, target), {"activation": "relu"}, ValueError, r"activation: expected one of 'tanh', 'softmax'"),
        ((source, target), {"scale": 0.0}, ValueError, r"scale: expected a finite number above zero"),
        ((source.long(), target), {}, TypeError, r"source: expected a float tensor, got torch.int64"),
        ((source, target.bfloat16()), {}, TypeError, r"target: expected torch.float32 as source, got torch.bfloat16"),
        ((source, target, static.to("meta")), {}, ValueError, r"static: expected device .* as source, got meta"),
    ]
    for arguments, options, error, message in cases:
        with pytest.raises(error, match=message):
            call(*arguments, **options)
