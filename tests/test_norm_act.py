"""norm_act against eager PyTorch: forms, formats, dtypes, gradients, dropout, and what the compiler sees of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import check_against_eager, run_with_gradients, small
from torch import Tensor
from torch.nn import functional as F

import skelops
from skelops.ops.norm_act import reference

FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (2, 64, 6, 25),
    (2, 16, 5, 20),
    (3, 14, 7, 17),
    (1, 3, 5, 25),
    (2, 33, 3, 25),
    (2, 9, 4, 18),
    (1, 10, 1, 25),
    (2, 216, 3, 25),
    (1, 130, 20, 17),
    (5, 6, 1, 1),
    (2, 4, 300, 25),
    (0, 3, 4, 25),
]
#: residual, residual affine
FORMS = [(False, False), (True, False), (True, True)]
RATE = 0.3


def eager(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    residual_shift: Tensor | None = None,
    *,
    negative_slope: float = 0.0,
    kept: Tensor | None = None,
) -> Tensor:
    """As it is written with BatchNorm in eval mode: affine in float32 where maps have less."""
    one = lambda p: p.to(scale.dtype)[:, None, None]  # noqa: E731
    z = (x * one(scale) + one(shift)).to(x.dtype)
    if kept is not None:
        z = z * kept / (1 - RATE)
    if residual is not None:
        if residual_scale is not None:
            residual = (residual * one(residual_scale) + one(residual_shift)).to(x.dtype)
        z = z + residual
    return z if negative_slope == 1 else F.leaky_relu(z, negative_slope)


def arguments(
    shape: tuple[int, ...], form: tuple[bool, bool], dtype: torch.dtype, memory_format: torch.memory_format
) -> list[Tensor | None]:
    C = shape[1]
    maps = [torch.randn(shape).to(dtype).contiguous(memory_format=memory_format) for _ in range(2)]
    scale, shift, residual_scale, residual_shift = (torch.randn(C) for _ in range(4))
    residual, affine = form
    last = [residual_scale, residual_shift] if affine else [None, None]
    return [maps[0], scale, shift, maps[1] if residual else None, *last]


def given(inputs: list[Tensor | None]) -> list[int]:
    return [i for i, x in enumerate(inputs) if x is not None]


def away_from_kinks(inputs: list[Tensor | None], kept: Tensor | None = None) -> None:
    """Moves the map so that no result lies so close to zero that rounding decides on which side."""
    z = eager(*(x.double() if x is not None else None for x in inputs), negative_slope=1.0, kept=kept)
    x, scale = inputs[0], inputs[1]
    near = z.abs() < 0.1
    # What is dropped without a residual is zero on both sides.
    step = 0.5 * torch.where(z < 0, -1.0, 1.0) * scale.sign()[:, None, None] / scale.abs().clamp(min=0.3)[:, None, None]
    x += torch.where(near, step, 0).to(x.dtype)


@pytest.mark.every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=["plain", "residual", "residual_affine"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_matches_eager(
    shape: tuple[int, ...], form: tuple[bool, bool], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    inputs = arguments(small(*shape), form, dtype, memory_format)
    away_from_kinks(inputs)
    # Of a sum over few channels, eager may happen to be much better than its precision.
    check_against_eager(skelops.norm_act, eager, inputs, given(inputs), factor=8)


@pytest.mark.parametrize("negative_slope", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("form", FORMS, ids=["plain", "residual", "residual_affine"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_dropout_and_slopes(
    negative_slope: float, form: tuple[bool, bool], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    for shape in ((2, 20, 7, 25), (3, 14, 5, 17)):
        inputs, seed = arguments(small(*shape), form, dtype, memory_format), torch.tensor([7])
        kept = reference.kept(inputs[0].shape, RATE, seed)
        if form[0]:
            away_from_kinks(inputs, kept)
        check_against_eager(
            lambda *a, s=seed: skelops.norm_act(*a, negative_slope=negative_slope, dropout=RATE, seed=s),
            lambda *a, k=kept: eager(*a, negative_slope=negative_slope, kept=k),
            inputs,
            given(inputs),
            factor=8,
        )


def slices(C: int, *shape: int) -> Tensor:
    """Channels of a wider channels_last map."""
    B, T, V = shape
    return torch.randn(B, C + 7, T, V).contiguous(memory_format=torch.channels_last)[:, 3 : 3 + C]


def step(inputs: list[Tensor | None], upstream: Tensor, **options: Any) -> list[Tensor]:
    """Output and gradients; unlike `run_with_gradients` it keeps the strides of the inputs."""
    leaves = [x.detach().requires_grad_() if x is not None else None for x in inputs]
    y = skelops.norm_act(*leaves, **options)
    return [y.detach(), *torch.autograd.grad(y, [x for x in leaves if x is not None], upstream)]


@pytest.mark.every_level
@pytest.mark.parametrize("C", [1, 6, 16, 24])
@pytest.mark.usefixtures("kernels")
def test_strides(C: int) -> None:
    B, T, V = 2, 4, 17
    wide = torch.randn(B, V, T, C)
    forms = [
        slices(C, B, T, V),
        torch.randn(B, C, T, V),
        torch.randn(B, C, T, V).contiguous(memory_format=torch.channels_last),
        wide.permute(0, 3, 2, 1),
        torch.randn(B, 2 * C, T, V)[:, ::2],
        torch.randn(1, C, T, V).expand(B, -1, -1, -1),
        slices(C, B, T, V)[:, :, ::2].repeat_interleave(2, 2)[:, :, :T],
    ]
    affine = [torch.randn(C) for _ in range(4)]
    options: dict[str, Any] = {"negative_slope": 0.1, "dropout": RATE, "seed": torch.tensor([3])}
    for x, residual in itertools.chain(((x, forms[0]) for x in forms), ((forms[0], x) for x in forms), [forms[1:3]]):
        for upstream in (torch.randn(B, C, T, V), torch.ones(1, 1, 1, 1).expand(B, C, T, V), slices(C, B, T, V)):
            inputs = [x, affine[0], affine[1], residual, affine[2], affine[3]]
            results = step(inputs, upstream, **options)
            dense = [i.contiguous() for i in inputs]
            with skelops.backend("reference"):
                expected = step(dense, upstream.contiguous(), **options)
            for a, b in zip(results, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("kernels")
def test_only_the_gradients_that_are_asked_for() -> None:
    for form in FORMS:
        inputs = arguments((2, 6, 3, 5), form, torch.float32, torch.channels_last)
        everything = dict(
            zip(given(inputs), run_with_gradients(skelops.norm_act, inputs, given(inputs))[1], strict=True)
        )
        for count in range(1, len(everything)):
            for wanted in itertools.combinations(everything, count):
                _, gradients = run_with_gradients(skelops.norm_act, inputs, wanted)
                assert all(torch.equal(g, everything[i]) for i, g in zip(wanted, gradients, strict=True))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_format_is_kept(memory_format: torch.memory_format) -> None:
    inputs = arguments((2, 6, 3, 5), (True, True), torch.float32, memory_format)
    y, gradient, _, _, residual_gradient, *_ = step(inputs, torch.ones(2, 6, 3, 5))
    for result in (y, gradient, residual_gradient):
        assert result.is_contiguous(memory_format=memory_format)
    sliced = skelops.norm_act(slices(6, 2, 3, 5), *inputs[1:3])
    assert sliced.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_dropout_rate(rate: float) -> None:
    shape = (8, 32, 20, 25)
    n = 8 * 32 * 20 * 25
    for seed in (0, 1, -1, 2**63 - 1, 12345):
        kept = reference.kept(shape, rate, torch.tensor([seed]))
        deviation = (rate * (1 - rate)) ** 0.5
        assert abs((~kept).double().mean().item() - rate) < 4 * deviation / n**0.5
        for axis in ((0, 2, 3), (0, 1, 2), (1, 2, 3)):  # of channels, joints, rows
            means = (~kept).double().mean(axis)
            assert (means - rate).abs().max() < 5 * deviation / (n / means.numel()) ** 0.5


def test_masks_of_different_seeds_and_neighbours_are_independent() -> None:
    shape, n = (4, 32, 20, 25), 4 * 32 * 20 * 25
    masks = [reference.kept(shape, 0.5, torch.tensor([s])).double().flatten() - 0.5 for s in (0, 1, 2, 256, 2**32, -7)]
    for a, b in itertools.combinations(masks, 2):
        assert abs((a * b).mean().item()) < 4 * 0.25 / n**0.5
        # Not another order of the same numbers either.
        assert abs((a * b.flip(0)).mean().item()) < 4 * 0.25 / n**0.5
        assert a.sum() != b.sum()
    order = reference.kept(shape, 0.5, torch.tensor([5])).permute(0, 2, 3, 1).flatten().double() - 0.5
    for lag in (1, 2, 16, 25, 32, 800):
        assert abs((order[lag:] * order[:-lag]).mean().item()) < 4 * 0.25 / (n - lag) ** 0.5


def test_oracle_of_the_hash() -> None:
    """The hash in plain integers."""
    low, seed, rate = (1 << 32) - 1, 42, 0.4
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    z ^= z >> 31
    B, C, T, V = shape = (2, 3, 4, 5)
    kept = reference.kept(shape, rate, torch.tensor([seed]))
    for b, c, t, v in itertools.product(range(B), range(C), range(T), range(V)):
        index = ((b * T + t) * V + v) * C + c
        h = (index & low) ^ (z & low)
        h ^= h >> 16
        h = h * 0x7FEB352D & low
        h ^= h >> 15
        h = (h + (z >> 32) + (index >> 32) * 0x9E3779B9) & low
        h = h * 0x846CA68B & low
        h ^= h >> 16
        assert kept[b, c, t, v].item() == (h >= rate * 2**32)


@pytest.mark.every_level
@pytest.mark.parametrize(
    "shape", [(2, 64, 40, 25), (3, 14, 9, 17), (2, 1, 9, 17), (1, 33, 5, 3), (7, 5, 1, 1)], ids=str
)
def test_mask_is_that_of_the_reference(shape: tuple[int, ...], kernels: str) -> None:
    if kernels == "triton" and not torch.cuda.is_available():
        shape = small(*shape)
    C, seed = shape[1], torch.tensor([-99])
    kept = reference.kept(shape, 0.25, seed)
    ones, zeros = torch.ones(C), torch.zeros(C)
    whole = torch.ones(shape[0], C + 3, *shape[2:]).contiguous(memory_format=torch.channels_last)
    maps = [torch.ones(shape), torch.ones(shape).contiguous(memory_format=torch.channels_last), whole[:, 1 : 1 + C]]
    for x in maps:
        for dtype in (torch.float32, torch.bfloat16):
            leaf = x.to(dtype).detach().requires_grad_()
            y = skelops.norm_act(leaf, ones, zeros, negative_slope=1.0, dropout=0.25, seed=seed)
            assert torch.equal(y != 0, kept)
            assert torch.equal(torch.autograd.grad(y.sum(), leaf)[0] != 0, kept)


@pytest.mark.usefixtures("kernels")
def test_no_dropout_is_none_and_the_scale_keeps_the_mean() -> None:
    x, scale, shift, *_ = arguments((2, 6, 5, 25), FORMS[0], torch.float32, torch.channels_last)
    seed = torch.tensor([1])
    plain = skelops.norm_act(x, scale, shift)
    assert torch.equal(skelops.norm_act(x, scale, shift, dropout=0.0, seed=seed), plain)
    dropped = skelops.norm_act(x, scale, shift, dropout=0.25, seed=seed)
    torch.testing.assert_close(dropped[dropped != 0], plain[dropped != 0] / 0.75)


@pytest.mark.cpu
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_results_are_bitwise_the_same_for_any_number_of_threads(memory_format: torch.memory_format) -> None:
    inputs = arguments((6, 70, 20, 25), (True, True), torch.float32, memory_format)
    seed, threads, results = torch.tensor([1]), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(step(inputs, torch.ones_like(inputs[0]), dropout=0.5, seed=seed))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def double(form: tuple[bool, bool]) -> list[Tensor | None]:
    inputs = arguments((2, 3, 4, 5), form, torch.float32, torch.contiguous_format)
    away_from_kinks(inputs)
    return [x.double().requires_grad_() if x is not None else None for x in inputs]


@pytest.mark.parametrize("form", FORMS, ids=["plain", "residual", "residual_affine"])
def test_gradcheck(form: tuple[bool, bool]) -> None:
    assert torch.autograd.gradcheck(skelops.norm_act, double(form))
    options: dict[str, Any] = {"negative_slope": 1.0, "dropout": RATE, "seed": torch.tensor([2])}
    assert torch.autograd.gradcheck(lambda *a: skelops.norm_act(*a, **options), double(form))


def test_double_backward_is_refused() -> None:
    inputs = arguments((2, 3, 4, 5), FORMS[0], torch.float32, torch.contiguous_format)
    x = inputs[0].requires_grad_()
    (gradient,) = torch.autograd.grad(skelops.norm_act(x, *inputs[1:3]).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        gradient.sum().backward()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_opcheck(memory_format: torch.memory_format) -> None:
    for form in FORMS:
        inputs = arguments((2, 3, 4, 5), form, torch.float32, memory_format)
        leaves = [x.requires_grad_() if x is not None else None for x in inputs]
        torch.library.opcheck(torch.ops.skelops.norm_act.default, (*leaves, 0.1, 0.5, torch.tensor([1])))
        x, scale, _, residual, residual_scale, _ = (y.detach() if y is not None else None for y in leaves)
        needs = [True, True, form[0], form[1]]
        arguments_ = (x, x, x, scale, residual, residual_scale, 0.1, 0.5, torch.tensor([1]), needs)
        torch.library.opcheck(torch.ops.skelops.norm_act_backward.default, arguments_)


def test_compile() -> None:
    def run(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor, seed: Tensor) -> Tensor:
        return skelops.norm_act(x * 2, scale, shift, residual, dropout=0.5, seed=seed).sum((2, 3))

    compiled: Callable[..., Tensor] = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for B, T in ((4, 5), (6, 7)):
        x, scale, shift, residual, *_ = arguments((B, 6, T, 25), FORMS[1], torch.float32, torch.channels_last)
        inputs = (x.requires_grad_(), scale.requires_grad_(), shift, residual, torch.tensor([B]))
        torch.testing.assert_close(compiled(*inputs), run(*inputs))
        for a, b in zip(*(torch.autograd.grad(f(*inputs).sum(), inputs[:2]) for f in (compiled, run)), strict=True):
            torch.testing.assert_close(a, b)


def test_autocast_lowers_maps_alone() -> None:
    inputs = arguments((2, 6, 3, 5), (True, True), torch.float32, torch.channels_last)
    device = torch.get_default_device().type
    leaves = [x.requires_grad_() for x in inputs]
    with torch.autocast(device, dtype=torch.bfloat16):
        y = skelops.norm_act(*leaves)
    assert y.dtype == torch.bfloat16
    lowered = [x.bfloat16() if x.dim() == 4 else x for x in inputs]
    assert torch.equal(y, skelops.norm_act(*lowered))
    gradients = torch.autograd.grad(y.sum(), leaves)
    assert all(g.dtype == torch.float32 for g in gradients)


def test_bad_input() -> None:
    x, scale, shift, residual, residual_scale, residual_shift = arguments(
        (2, 6, 3, 5), (True, True), torch.float32, torch.contiguous_format
    )
    norm_act: Callable[..., Tensor] = skelops.norm_act
    seed = torch.tensor([1])
    with pytest.raises(ValueError, match=r"x: expected shape \(B, C, T, V\), got \(6, 3, 5\)"):
        norm_act(x[0], scale, shift)
    with pytest.raises(ValueError, match=r"shift: expected shape \(C\) with C=6, got \(5,\)"):
        norm_act(x, scale, shift[:5])
    with pytest.raises(
        TypeError, match="scale: expected torch.float32 for a map of torch.bfloat16, got torch.bfloat16"
    ):
        norm_act(x.bfloat16(), scale.bfloat16(), shift)
    with pytest.raises(TypeError, match="residual: expected torch.float32 as x, got torch.bfloat16"):
        norm_act(x, scale, shift, residual.bfloat16())
    with pytest.raises(ValueError, match=r"residual: expected shape \(B, C, T, V\) with .*, got \(2, 6, 3, 4\)"):
        norm_act(x, scale, shift, residual[..., :4])
    with pytest.raises(ValueError, match="residual: expected a map beside residual_scale, got None"):
        norm_act(x, scale, shift, None, residual_scale, residual_shift)
    with pytest.raises(ValueError, match="residual_shift: expected both residual_scale and residual_shift or none"):
        norm_act(x, scale, shift, residual, residual_scale)
    for slope in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="negative_slope: expected a number of at least 0"):
            norm_act(x, scale, shift, negative_slope=slope)
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="dropout: expected a probability below 1"):
            norm_act(x, scale, shift, dropout=rate, seed=seed)
    with pytest.raises(ValueError, match=r"seed: expected an int64 tensor \(1\) for dropout, got None"):
        norm_act(x, scale, shift, dropout=0.5)
    with pytest.raises(TypeError, match=r"seed: expected torch.int64, got torch.int32"):
        norm_act(x, scale, shift, dropout=0.5, seed=seed.int())
    with pytest.raises(TypeError, match=r"seed: expected a tensor, got int"):
        norm_act(x, scale, shift, dropout=0.5, seed=3)
    with pytest.raises(ValueError, match=r"seed: expected shape \(1\), got \(2,\)"):
        norm_act(x, scale, shift, dropout=0.5, seed=seed.expand(2))


@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.usefixtures("kernels")
def test_what_is_not_finite(slope: float, memory_format: torch.memory_format) -> None:
    """As torch's own activations: -inf is on the left of zero, NaN goes through, and where ReLU is off no gradient."""
    special = torch.tensor([-torch.inf, torch.inf, torch.nan, -2.0, 0.0, 3.0])
    values, upstream = (
        v.flatten()[:, None, None, None].expand(-1, 20, 2, 1) for v in torch.meshgrid(special, special, indexing="ij")
    )
    x = values.contiguous(memory_format=memory_format).requires_grad_()
    y = skelops.norm_act(x, torch.ones(20), torch.zeros(20), negative_slope=slope)
    expected = F.leaky_relu(x, slope) if slope else F.relu(x)
    torch.testing.assert_close(y, expected, equal_nan=True)
    found, truth = (torch.autograd.grad(z, x, upstream)[0] for z in (y, expected))
    number = ~x.isnan()
    torch.testing.assert_close(found[number], truth[number], equal_nan=True)
