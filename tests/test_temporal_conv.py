"""temporal_conv against eager PyTorch: forms, layouts, dtypes, gradients, and what the compiler sees of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conftest import assert_no_worse, check_against_eager
from torch import Tensor, nn
from torch.nn.functional import conv2d

import skelops
from skelops.nn import TemporalConv


class Form(NamedTuple):
    B: int
    C: int
    O: int
    T: int
    V: int
    k: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1


FORMS = [
    Form(2, 16, 16, 13, 25, 9),
    Form(2, 3, 16, 6, 20, 9),
    Form(3, 14, 33, 7, 17, 5, dilation=2),
    Form(2, 16, 20, 9, 25, 9, stride=2),
    Form(2, 10, 9, 8, 5, 1),
    Form(2, 64, 20, 7, 5, 1, stride=2),
    Form(2, 9, 64, 5, 1, 3, stride=3, dilation=2),
    Form(1, 33, 70, 1, 20, 7),
    Form(2, 24, 36, 5, 5, 3, groups=6),
    Form(1, 60, 30, 9, 4, 5, stride=2, dilation=3, groups=3),
    Form(0, 3, 8, 4, 25, 3),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def settings(form: Form) -> dict[str, int]:
    return {"stride": form.stride, "dilation": form.dilation, "groups": form.groups}


def fused(form: Form, stats: bool = False) -> Callable[..., Any]:
    return lambda *args: skelops.temporal_conv(*args, **settings(form), stats=stats)


def rounded(form: Form) -> Callable[..., Any]:
    """With sums in the precision of eager's."""

    def run(*args: Tensor) -> tuple[Tensor, ...]:
        y, total, squares = fused(form, stats=True)(*args)
        return y, total.float(), squares.float()

    return run


def eager(form: Form, stats: bool = False) -> Callable[..., Any]:
    """In the usual style of the field."""

    def run(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Any:
        if scale is not None and shift is not None:
            x = torch.relu(scale[:, None, None] * x + shift[:, None, None]).to(x.dtype)
        padding = (weight.shape[2] // 2 * form.dilation, 0)
        y = conv2d(x, weight[..., None], bias, (form.stride, 1), padding, (form.dilation, 1), form.groups)
        if not stats:
            return y
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        return y, wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))

    return run


def make(form: Form, dtype: torch.dtype = torch.float32, affine: bool = True) -> list[Tensor]:
    """Inputs whose scaled values stay clear of the kink of ReLU, where a rounding decides the gradient."""
    channels = form.C // form.groups
    x = torch.randn(form.B, form.C, form.T, form.V).to(dtype)
    weight = (torch.randn(form.O, channels, form.k) / (channels * form.k) ** 0.5).to(dtype)
    inputs = [x, weight, torch.randn(form.O).to(dtype)]
    if affine:
        scale, shift = torch.randn(form.C), torch.randn(form.C)
        at_kink = (scale[:, None, None] * x.float() + shift[:, None, None]).abs() < 1e-3
        inputs = [torch.where(at_kink, x + 0.25, x), *inputs[1:], scale, shift]
    return inputs


@pytest.mark.every_level
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.usefixtures("kernels")
def test_matches_eager(form: Form, dtype: torch.dtype, memory_format: torch.memory_format, affine: bool) -> None:
    inputs = make(form, dtype, affine)
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)
    check_against_eager(fused(form), eager(form), inputs, differentiable=range(len(inputs)))
    x = inputs[0].requires_grad_()
    y = fused(form)(*inputs)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    if form.B:  # an empty map is in both formats
        assert y.is_contiguous(memory_format=memory_format)
        assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.every_level
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_stats(form: Form, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    """The sums, and the gradient that comes through them."""
    inputs = make(form, dtype)
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)
    y, total, squares = fused(form, stats=True)(*inputs)
    assert total.dtype == squares.dtype == torch.float64
    rounding = 4 * torch.finfo(dtype).eps * max(1, y.numel() / form.O) ** 0.5
    torch.testing.assert_close(total, y.double().sum((0, 2, 3)), atol=rounding, rtol=1e-5)
    torch.testing.assert_close(
        squares, y.double().square().sum((0, 2, 3)), atol=4 * rounding, rtol=4 * torch.finfo(dtype).eps
    )
    check_against_eager(rounded(form), eager(form, stats=True), inputs, differentiable=range(5), factor=3)


@pytest.mark.parametrize("outputs", [(0,), (1,), (2,), (0, 1), (0, 2)], ids=str)
def test_subsets_of_outputs(outputs: tuple[int, ...]) -> None:
    form = Form(2, 6, 20, 9, 25, 5, stride=2)

    def some(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: [function(*args)[i] for i in outputs]

    inputs = make(form)
    check_against_eager(some(rounded(form)), some(eager(form, True)), inputs, differentiable=range(5), factor=3)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (4,), (0, 1), (1, 4), (0, 3, 4)], ids=str)
@pytest.mark.usefixtures("kernels")
def test_subsets_of_gradients(wanted: tuple[int, ...]) -> None:
    form = Form(2, 6, 8, 9, 5, 3)
    check_against_eager(fused(form), eager(form), make(form), differentiable=wanted)


@pytest.mark.parametrize("view", ["slice", "odd slice", "permuted", "sliced", "expanded", "offset"])
@pytest.mark.usefixtures("kernels")
def test_strides(view: str) -> None:
    form = Form(2, 16, 8, 9, 5, 3)
    wide = torch.randn(2, 48, 9, 5).contiguous(memory_format=torch.channels_last)
    x = {
        "slice": wide[:, 16:32],
        "odd slice": wide[:, 3:19],
        "permuted": torch.randn(2, 5, 16, 9).permute(0, 2, 3, 1),
        "sliced": torch.randn(2, 32, 9, 10)[:, ::2, :, 3:8],
        "expanded": torch.randn(1, 16, 9, 5).expand(2, 16, 9, 5),
        "offset": torch.randn(2 * 16 * 9 * 5 + 3)[3:].view(2, 16, 9, 5),
    }[view]
    _, weight, bias, scale, shift = make(form)
    weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    for inputs in ([x, weight, bias], [x, weight, bias, scale, shift]):
        leaves = [i.detach().requires_grad_() for i in inputs]
        ours, theirs = fused(form)(*leaves), eager(form)(*leaves)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        for a, b in zip(
            torch.autograd.grad(ours.sum(), leaves),  # sum: an upstream gradient of stride 0
            torch.autograd.grad(theirs.sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.cpu
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_many_tiles(B: int, memory_format: torch.memory_format) -> None:
    """Maps that do not fit a tile: its ends are read from the neighbouring frames."""
    for form in (Form(B, 64, 48, 70, 25, 9), Form(B, 48, 64, 71, 25, 5, stride=2, dilation=2)):
        inputs = make(form)
        inputs[0] = inputs[0].contiguous(memory_format=memory_format)
        with skelops.backend("cpu"):
            check_against_eager(rounded(form), eager(form, True), inputs, differentiable=range(5), factor=3)


#: What the CPU kernels filter minimally: whole and partial tiles of six frames, and frames after.
MINIMAL = [
    *(Form(2, 34, 40, T, 3, k) for k in (3, 5, 7, 9) for T in (3, 6, 10, 13)),
    *(Form(2, 34, 40, T, 3, k, stride=2) for k in (7, 9) for T in (5, 11, 12, 19, 26)),
    Form(2, 16, 20, 13, 5, 9),
    Form(1, 48, 32, 40, 25, 9),  # several items
    Form(1, 80, 64, 81, 25, 9, stride=2),
    Form(1, 32, 64, 7, 80, 7),  # more joints than rows of a product
    Form(1, 64, 96, 14, 120, 7, stride=2),
]


@pytest.mark.every_level
@pytest.mark.cpu
@pytest.mark.parametrize("form", MINIMAL, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
def test_minimal_filtering(form: Form, dtype: torch.dtype, memory_format: torch.memory_format, affine: bool) -> None:
    inputs = make(form, dtype, affine)
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)
    with skelops.backend("cpu"):
        check_against_eager(rounded(form), eager(form, True), inputs, differentiable=range(len(inputs)), factor=3)
        check_against_eager(fused(form), eager(form), inputs, differentiable=(0,), factor=3)
        check_against_eager(fused(form), eager(form), inputs, differentiable=(1,), factor=3)


@pytest.mark.cpu
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize(("stride", "reached"), [(1, slice(6, 24)), (2, slice(0, 12))], ids=["plain", "strided"])
def test_non_finite_values_stay_within_a_minimal_tile(value: float, stride: int, reached: slice) -> None:
    """``reached``: the tiles of the frames that the value belongs to, 10 to 18 or 5 to 9."""
    form = Form(2, 64, 64, 30, 4, 9, stride)
    inputs = make(form, affine=False)
    inputs[0][1, 3, 14, 2] = value
    with skelops.backend("cpu"):
        ours, theirs = fused(form)(*inputs), eager(form)(*inputs)
    assert not ours[~theirs.isfinite()].isfinite().any()
    spread = torch.zeros_like(ours, dtype=torch.bool)
    spread[1, :, reached, 2] = True
    assert ours[~spread].isfinite().all()


def test_gradcheck() -> None:
    for form in (Form(2, 4, 6, 5, 2, 3, stride=2, groups=2), Form(1, 3, 2, 5, 2, 5, dilation=2)):
        inputs = [x.double().requires_grad_() for x in make(form)]
        assert torch.autograd.gradcheck(fused(form, stats=True), inputs)
        assert torch.autograd.gradcheck(fused(form), inputs)
        assert torch.autograd.gradcheck(fused(form), inputs[:2])


@pytest.mark.parametrize("stats", [False, True], ids=["plain", "stats"])
def test_opcheck(stats: bool) -> None:
    form = Form(2, 4, 6, 5, 3, 3, stride=2)
    inputs = [x.requires_grad_() for x in make(form)]
    for x in (inputs[0], inputs[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()):
        for rest in (inputs[1:], [inputs[1], None, None, None]):
            torch.library.opcheck(torch.ops.skelops.temporal_conv.default, (x, *rest, 2, 1, 1, stats))


def test_compiles_whole() -> None:
    form = Form(2, 4, 8, 6, 5, 3, stride=2)
    compiled = torch.compile(fused(form, stats=True), fullgraph=True, dynamic=True)
    for B, T in ((2, 6), (5, 9)):
        leaves = [x.requires_grad_() for x in make(form._replace(B=B, T=T))]
        ours, theirs = compiled(*leaves), fused(form, stats=True)(*leaves)
        torch.testing.assert_close(tuple(ours), tuple(theirs))
        for a, b in zip(
            *(torch.autograd.grad(sum(y.square().sum() for y in found[:2]), leaves) for found in (ours, theirs)),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_autocast() -> None:
    """Maps are cast, weights in the kernel, the normalisation is not; no worse than eager, which casts weights, too."""
    form = Form(2, 8, 16, 5, 25, 3)
    inputs = [x.requires_grad_() for x in make(form)]
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        y, total, _ = fused(form, stats=True)(*inputs)
    assert y.dtype == torch.bfloat16 and total.dtype == torch.float64
    gradients = torch.autograd.grad(y.float().square().mean(), inputs)
    assert all(g.dtype == torch.float32 for g in gradients)
    low = [x.bfloat16() for x in inputs[:3]]
    truth = fused(form)(*(x.double() for x in (*low, *inputs[3:])))
    assert_no_worse(y, eager(form)(*low, *inputs[3:]), truth)


@pytest.mark.parametrize("kernels", ["cpu"], indirect=True)
@pytest.mark.usefixtures("kernels")
def test_autocast_does_not_round_gradients_of_weights() -> None:
    """On the CPU, whose kernel takes a weight of float32 beside maps of 16 bits."""
    inputs = [x.requires_grad_() for x in make(Form(2, 32, 32, 13, 25, 9), affine=False)]
    with torch.autocast("cpu", torch.bfloat16):
        y = skelops.temporal_conv(inputs[0], inputs[1])
    (gradient,) = torch.autograd.grad(y.float().square().sum(), inputs[1])
    assert not torch.equal(gradient, gradient.bfloat16().float())


def test_repeats_bit_for_bit() -> None:
    form = Form(5, 32, 40, 30, 25, 9)
    inputs = [x.requires_grad_() for x in make(form)]
    runs = []
    for _ in range(3):
        y, total, squares = fused(form, stats=True)(*inputs)
        runs.append([y, total, squares, *torch.autograd.grad(y.square().sum() + squares.sum(), inputs)])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.usefixtures("kernels")
def test_non_finite_values_spread_as_in_eager(value: float, affine: bool) -> None:
    form = Form(2, 20, 24, 9, 5, 3, groups=2)
    inputs = make(form, affine=affine)
    inputs[0][0, 3, 4, 2] = value
    ours, theirs = fused(form)(*inputs), eager(form)(*inputs)
    assert torch.equal(ours.isfinite(), theirs.isfinite())


def test_inputs_are_left_alone() -> None:
    form = Form(2, 16, 16, 5, 25, 3)
    inputs = make(form)
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    before = [x.clone() for x in inputs]
    leaves = [x.requires_grad_() for x in inputs]
    sum(part.sum() for part in fused(form, stats=True)(*leaves)).backward()
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))


def test_double_backward_is_refused() -> None:
    form = Form(1, 3, 4, 2, 5, 3)
    inputs = [x.requires_grad_() for x in make(form)]
    (grad,) = torch.autograd.grad(fused(form)(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_bad_input() -> None:
    x, weight, bias, scale, shift = make(Form(2, 6, 4, 5, 25, 3))
    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((x[0], weight), {}, ValueError, r"x: expected shape \(B, C, T, V\), got \(6, 5, 25\)"),
        (
            (x[:, :, :0], weight),
            {},
            ValueError,
            r"x: expected at least one channel, frame and joint, got .*\(2, 6, 0, 25\)",
        ),
        ((x, weight[..., None]), {}, ValueError, r"weight: expected shape \(O, C/groups, k\), got \(4, 6, 3, 1\)"),
        ((x, weight), {"groups": 2}, ValueError, r"weight: .*C=6 and O divisible by groups=2, got \(4, 6, 3\)"),
        ((x, weight[:3, :3]), {"groups": 2}, ValueError, r"weight: .*groups=2, got \(3, 3, 3\)"),
        ((x, weight[..., :2]), {}, ValueError, r"weight: expected 1, 3, 5, 7 or 9 taps, got 2"),
        ((x, weight, bias[:3]), {}, ValueError, r"bias: expected shape \(O\) with O=4, got \(3,\)"),
        ((x, weight, None, scale[:4], shift), {}, ValueError, r"scale: expected shape \(C\) with C=6, got \(4,\)"),
        ((x, weight, None, scale), {}, ValueError, r"shift: expected a tensor \(C,\) beside scale, got None"),
        ((x, weight, None, None, shift), {}, ValueError, r"scale: expected a tensor \(C,\) beside shift, got None"),
        ((x, weight), {"stride": 0}, ValueError, r"stride: expected a positive integer, got 0"),
        ((x, weight), {"dilation": 1.0}, ValueError, r"dilation: expected a positive integer, got 1.0"),
        ((x, weight), {"groups": True}, ValueError, r"groups: expected a positive integer, got True"),
        ((x.long(), weight), {}, TypeError, r"x: expected a float tensor, got torch.int64"),
        ((x, weight.bfloat16()), {}, TypeError, r"weight: expected torch.float32 as x, got torch.bfloat16"),
        (
            (x, weight, None, scale.bfloat16(), shift),
            {},
            TypeError,
            r"scale: expected torch.float32 .*bfloat16",
        ),
        (
            (x, weight, None, scale, shift.double()),
            {},
            TypeError,
            r"shift: expected torch.float32 .*float64",
        ),
        ((x, weight, bias.to("meta")), {}, ValueError, r"bias: expected device .* as x, got meta"),
    ]
    for arguments, keywords, error, message in cases:
        with pytest.raises(error, match=message):
            skelops.temporal_conv(*arguments, **keywords)


@pytest.mark.parametrize(
    "form", [Form(2, 8, 12, 9, 5, 9, stride=2), Form(2, 8, 8, 9, 5, 5, dilation=2, groups=2)], ids=str
)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_module_is_conv2d(form: Form, bias: bool) -> None:
    """Parameters, their initialisation, and the state_dict of nn.Conv2d."""
    _, C, O, _, _, k, stride, dilation, groups = form
    torch.manual_seed(3)
    ours = TemporalConv(C, O, k, stride, dilation, groups, bias)
    torch.manual_seed(3)
    padding = (k // 2 * dilation, 0)
    theirs = nn.Conv2d(C, O, (k, 1), (stride, 1), padding, (dilation, 1), groups, bias)
    for (name, a), (other, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    theirs.load_state_dict(ours.state_dict())
    x = make(form)[0]
    for memory_format in FORMATS:
        module, map_ = ours.to(memory_format=memory_format), x.contiguous(memory_format=memory_format)
        torch.testing.assert_close(module(map_), theirs(x), atol=1e-5, rtol=1e-5)
        assert module(map_, stats=True).sum.shape == (O,)
    scale, shift = torch.randn(C), torch.randn(C)
    activated = torch.relu(scale[:, None, None] * x + shift[:, None, None])
    torch.testing.assert_close(ours(x, scale, shift), theirs(activated), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="kernel_size: expected 1, 3, 5, 7 or 9 frames, got 4"):
        TemporalConv(C, O, 4)
