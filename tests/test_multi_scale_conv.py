"""multi_scale_conv against its branches in eager PyTorch: forms, layouts, dtypes, gradients, and the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conftest import GPU, check_against_eager
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

import skelops
from skelops import _backend


class Form(NamedTuple):
    B: int
    C: int
    W: int
    T: int
    V: int
    k: int
    dilations: tuple[int, ...] = (1, 2)
    stride: int = 1


FORMS = [
    Form(2, 16, 4, 9, 25, 5),
    Form(2, 10, 5, 8, 20, 5, stride=2),
    Form(1, 64, 16, 13, 25, 5),
    Form(2, 3, 3, 1, 17, 3),
    Form(2, 24, 7, 7, 5, 3, dilations=(1, 2, 3, 4), stride=3),
    Form(0, 8, 4, 4, 25, 5),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def fused(form: Form, stats: bool = False) -> Callable[..., Any]:
    def run(*args: Tensor) -> Any:
        y = skelops.multi_scale_conv(*args, dilations=form.dilations, stride=form.stride, stats=stats)
        return (y[0], y[1].float(), y[2].float()) if stats else y

    return run


def eager(form: Form, stats: bool = False) -> Callable[..., Any]:
    """In the usual style of the field: a list of branches, concatenated."""

    def run(narrow: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *others: Tensor) -> Any:
        plain_weight, plain_bias, scale, shift = others
        activated = torch.relu(scale[:, None, None] * narrow + shift[:, None, None]).to(x.dtype)
        *parts, pooled = activated.chunk(len(form.dilations) + 1, dim=1)
        stride = (form.stride, 1)
        branches = [
            conv2d(part, w[..., None], b, stride, (form.k // 2 * dilation, 0), (dilation, 1))
            for part, w, b, dilation in zip(parts, weight, bias, form.dilations, strict=True)
        ]
        branches.append(max_pool2d(pooled, (3, 1), stride, (1, 0)))
        branches.append(conv2d(x, plain_weight[..., None, None], plain_bias, stride))
        y = torch.cat(branches, dim=1)
        if not stats:
            return y
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        return y, wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))

    return run


def make(form: Form, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Inputs whose scaled values stay clear of the kink of ReLU, where a rounding decides the gradient."""
    B, C, W, T, V, k = form[:6]
    G = len(form.dilations)
    channels = (G + 1) * W
    scale, shift = torch.randn(channels), torch.randn(channels)
    narrow = torch.randn(B, channels, T, V).to(dtype)
    at_kink = (scale[:, None, None] * narrow.float() + shift[:, None, None]).abs() < 1e-3
    parameters = (
        torch.randn(G, W, W, k) / (W * k) ** 0.5, torch.randn(G, W), torch.randn(W, C) / C**0.5, torch.randn(W)
    )  # fmt: skip
    x = torch.randn(B, C, T, V)
    return [torch.where(at_kink, narrow + 0.25, narrow), *(part.to(dtype) for part in (x, *parameters)), scale, shift]


def interpreted(form: Form) -> Form:
    """The form with fewer channels where Triton's interpreter runs every program in Python."""
    slow = _backend._forced == "triton" and not GPU
    return form._replace(C=min(form.C, 10), W=min(form.W, 5), T=min(form.T, 7)) if slow else form


@pytest.mark.every_level
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_matches_eager(form: Form, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    form = interpreted(form)
    inputs = make(form, dtype)
    inputs[:2] = [x.contiguous(memory_format=memory_format) for x in inputs[:2]]
    # Channels in half precision hold equal values, of which either may have the gradient of a maximum.
    differentiable = range(8) if dtype == torch.float32 else range(1, 6)
    check_against_eager(fused(form), eager(form), inputs, differentiable=differentiable)
    y = fused(form)(*inputs)
    assert y.is_contiguous(memory_format=memory_format) or not y.numel()


@pytest.mark.every_level
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_stats(memory_format: torch.memory_format) -> None:
    """The sums, and the gradient that comes through them."""
    form = Form(3, 6, 5, 7, 20, 5, stride=2)
    inputs = make(form)
    inputs[:2] = [x.contiguous(memory_format=memory_format) for x in inputs[:2]]
    y, total, squares = skelops.multi_scale_conv(*inputs, dilations=form.dilations, stride=2, stats=True)
    assert total.dtype == squares.dtype == torch.float64
    torch.testing.assert_close(total, y.double().sum((0, 2, 3)), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(squares, y.double().square().sum((0, 2, 3)), atol=1e-4, rtol=1e-5)
    check_against_eager(fused(form, True), eager(form, True), inputs, differentiable=range(8), factor=4)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (4,), (6,), (0, 7), (3, 5)], ids=str)
def test_subsets_of_gradients(wanted: tuple[int, ...]) -> None:
    form = Form(2, 6, 4, 9, 5, 3)
    check_against_eager(fused(form), eager(form), make(form), differentiable=wanted)


@pytest.mark.parametrize("view", ["slice", "permuted", "expanded"])
@pytest.mark.usefixtures("kernels")
def test_strides(view: str) -> None:
    form = Form(2, 16, 4, 5, 5, 3)
    narrow, x, *others = make(form)
    x = {
        "slice": torch.randn(2, 48, 5, 5).contiguous(memory_format=torch.channels_last)[:, 16:32],
        "permuted": torch.randn(2, 5, 16, 5).permute(0, 2, 3, 1),
        "expanded": x[:1].expand(2, 16, 5, 5),
    }[view]
    results = []
    for function in (fused(form), eager(form)):
        leaves = [part.detach().requires_grad_() for part in (narrow, x, *others)]
        y = function(*leaves)
        results.append((y, *torch.autograd.grad(y.sum(), leaves)))  # sum: an upstream gradient of stride 0
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_gradcheck() -> None:
    form = Form(2, 3, 2, 5, 2, 3, stride=2)
    inputs = [x.double().requires_grad_() for x in make(form)]
    assert torch.autograd.gradcheck(fused(form), inputs)

    def with_sums(*args: Tensor) -> Any:
        return skelops.multi_scale_conv(*args, dilations=(1, 2), stride=2, stats=True)

    assert torch.autograd.gradcheck(with_sums, inputs)


@pytest.mark.parametrize("stats", [False, True], ids=["plain", "stats"])
def test_opcheck(stats: bool) -> None:
    inputs = [x.requires_grad_() for x in make(Form(2, 4, 3, 5, 3, 3))]
    last = [x.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for x in inputs[:2]]
    for maps in (inputs[:2], last):
        torch.library.opcheck(torch.ops.skelops.multi_scale_conv.default, (*maps, *inputs[2:], [1, 2], 2, stats))


def test_compiles_whole() -> None:
    form = Form(2, 6, 4, 7, 5, 3, stride=2)
    compiled = torch.compile(fused(form, stats=True), fullgraph=True, dynamic=True)
    for B, T in ((2, 7), (5, 9)):
        leaves = [x.requires_grad_() for x in make(form._replace(B=B, T=T))]
        results = []
        for function in (compiled, fused(form, stats=True)):
            y = function(*leaves)
            results.append((*y, *torch.autograd.grad(sum(part.square().sum() for part in y[:2]), leaves)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_compiles_in_float64() -> None:
    """Which the reference serves: there, a compiled gradient runs below autograd."""
    form = Form(2, 6, 4, 7, 5, 3, stride=2)
    leaves = [x.double().requires_grad_() for x in make(form)]
    compiled = torch.compile(fused(form), fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(run(*leaves).square().sum(), leaves) for run in (compiled, eager(form)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_keeps_the_normalisation() -> None:
    form = Form(2, 8, 4, 6, 25, 5)
    inputs = [x.requires_grad_() for x in make(form)]
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        y = fused(form)(*inputs)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), eager(form)(*inputs), atol=5e-2, rtol=5e-2)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.float().square().mean(), inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 6, 4)}, r"x: expected shape \(B, C, T, V\), got \(2, 6, 4\)"),
        (
            {"narrow": torch.zeros(2, 8, 4, 25)},
            r"narrow: expected shape \(B, \(G\+1\)W, T, V\) with .*\(G\+1\)W=12, got \(2, 8, 4, 25\)",
        ),
        ({"bias": torch.zeros(2, 5)}, r"bias: expected shape \(G, W\) with G=2, W=4, got \(2, 5\)"),
        ({"plain_weight": torch.zeros(4, 5)}, r"plain_weight: expected shape \(W, C\) with C=6, W=4, got \(4, 5\)"),
        ({"scale": torch.zeros(4)}, r"scale: expected shape \(\(G\+1\)W\) with \(G\+1\)W=12, got \(4,\)"),
        ({"weight": torch.zeros(2, 4, 4, 4)}, "weight: expected 1, 3, 5, 7 or 9 taps, got 4"),
        ({"shift": torch.zeros(12, device="meta")}, "shift: expected device .* as narrow, got meta"),
        ({"dilations": (1,)}, "dilations: expected 2 as weight has, got 1"),
        ({"dilations": (1, 0)}, "dilations: expected a positive integer, got 0"),
        ({"stride": 0}, "stride: expected a positive integer, got 0"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    good = {
        "narrow": torch.zeros(2, 12, 4, 25),
        "x": torch.zeros(2, 6, 4, 25),
        "weight": torch.zeros(2, 4, 4, 5),
        "bias": torch.zeros(2, 4),
        "plain_weight": torch.zeros(4, 6),
        "plain_bias": torch.zeros(4),
        "scale": torch.zeros(12),
        "shift": torch.zeros(12),
        "dilations": (1, 2),
    }
    with pytest.raises(ValueError, match=f"^{message}"):
        skelops.multi_scale_conv(**{**good, **change})
    empty = {"plain_weight": torch.zeros(0, 6), "weight": torch.zeros(2, 0, 0, 5), "bias": torch.zeros(2, 0)}
    with pytest.raises(ValueError, match="plain_weight: expected at least one element, got"):
        skelops.multi_scale_conv(**{**good, **empty})
    for name in ("narrow", "x", "scale", "shift"):
        with pytest.raises(TypeError, match=f"^{name}: expected a tensor, got float"):
            skelops.multi_scale_conv(**{**good, name: 0.5})
