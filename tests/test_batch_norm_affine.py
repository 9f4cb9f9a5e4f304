"""batch_norm_affine against torch.nn.functional.batch_norm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import skelops

SHAPE = (4, 70, 3, 5)
COUNT = 4 * 3 * 5


def eager_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.double().sum((0, 2, 3)), x.double().square().sum((0, 2, 3))


def parameters(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(70, dtype=dtype).requires_grad_(), torch.randn(70, dtype=dtype).requires_grad_()


@pytest.mark.every_level
@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, True), (False, False)], ids=str)
@pytest.mark.usefixtures("kernels")
def test_matches_batch_norm(affine: tuple[bool, bool]) -> None:
    x = (torch.randn(SHAPE) * 3 + 2).requires_grad_()
    weight, bias = (p if wanted else None for p, wanted in zip(parameters(), affine, strict=True))
    ours, theirs = ([torch.randn(70), torch.rand(70) + 1] for _ in range(2))
    theirs = [part.clone() for part in ours]
    scale, shift = skelops.batch_norm_affine(*eager_sums(x), COUNT, weight, bias, *ours, momentum=0.3, eps=1e-3)
    assert scale.dtype == shift.dtype == torch.float32
    y = x * scale[:, None, None] + shift[:, None, None]
    expected = F.batch_norm(x, *theirs, weight, bias, training=True, momentum=0.3, eps=1e-3)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
        assert not a.requires_grad
    leaves = [part for part in (x, weight, bias) if part is not None]
    upstream = torch.randn(SHAPE)
    results, truths = (torch.autograd.grad(output, leaves, upstream) for output in (y, expected))
    for a, b in zip(results, truths, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("kernels")
def test_running_statistics_in_parts() -> None:
    sums, affine = eager_sums(torch.randn(SHAPE)), parameters()
    whole = [torch.randn(70), torch.rand(70) + 1]
    parts = [list(running.clone().split([1, 64, 5])) for running in whole]
    expected = skelops.batch_norm_affine(*sums, COUNT, *affine, *whole)
    results = skelops.batch_norm_affine(*sums, COUNT, *affine, *parts)
    for a, b in zip([*results, *map(torch.cat, parts)], [*expected, *whole], strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("kernels")
def test_each_gradient_alone() -> None:
    inputs = [*eager_sums(torch.randn(SHAPE)), *parameters()]
    leaves = [x.detach().requires_grad_() for x in inputs]
    for pick in ((0,), (1,), (0, 1)):

        def gradients(wanted: list[int], pick: tuple[int, ...] = pick) -> tuple[Tensor | None, ...]:
            args = [x if i in wanted else x.detach() for i, x in enumerate(leaves)]
            outputs = skelops.batch_norm_affine(*args[:2], COUNT, *args[2:])
            starts = [outputs[i] for i in pick if outputs[i].requires_grad]
            if not starts:
                return (None,) * len(wanted)
            ones = [torch.ones(70)] * len(starts)
            return torch.autograd.grad(starts, [leaves[i] for i in wanted], ones, allow_unused=True)

        everything = gradients([0, 1, 2, 3])
        for i in range(4):
            (alone,) = gradients([i])
            expected = everything[i]
            if alone is None:
                assert expected is None or not expected.any()
            else:
                assert torch.equal(alone, expected)


def test_float64_is_exact() -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    weight, bias = parameters(torch.float64)
    scale, shift = skelops.batch_norm_affine(*eager_sums(x), COUNT, weight, bias, dtype=torch.float64)
    expected = F.batch_norm(x, None, None, weight, bias, training=True)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], expected, rtol=1e-12, atol=1e-12)
    sums = [s.requires_grad_() for s in eager_sums(x)]
    assert torch.autograd.gradcheck(
        lambda *a: skelops.batch_norm_affine(*a[:2], COUNT, *a[2:], dtype=torch.float64), (*sums, weight, bias)
    )


@pytest.mark.usefixtures("kernels")
def test_a_count_that_is_a_tensor() -> None:
    sums, (weight, bias) = eager_sums(torch.randn(SHAPE)), parameters()
    running = [[torch.zeros(70), torch.ones(70)] for _ in range(2)]
    count = torch.tensor([float(COUNT)], dtype=torch.float64)
    results = [
        skelops.batch_norm_affine(*sums, n, weight, bias, *r) for n, r in zip((COUNT, count), running, strict=True)
    ]
    for a, b in zip((*results[0], *running[0]), (*results[1], *running[1]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.every_level
@pytest.mark.usefixtures("kernels")
def test_constant_channels_and_empty_maps() -> None:
    # The variance comes out below zero by rounding.
    total, square_sum = (torch.full((70,), s * COUNT, dtype=torch.float64) for s in (0.1, 0.01 * (1 - 1e-9)))
    scale, shift = skelops.batch_norm_affine(total, square_sum, COUNT, None, None)
    torch.testing.assert_close(scale, torch.full((70,), 1e-5**-0.5))
    running = torch.randn(70), torch.rand(70)
    before = [part.clone() for part in running]
    skelops.batch_norm_affine(torch.zeros(70).double(), torch.zeros(70).double(), 0, None, None, *running)
    assert all(torch.equal(a, b) for a, b in zip(running, before, strict=True))
    assert shift.isfinite().all()
    none = torch.zeros(1, dtype=torch.float64)
    for momentum in (0.1, torch.tensor([0.1])):
        skelops.batch_norm_affine(none.expand(70), none.expand(70), none, None, None, *running, momentum=momentum)
        assert all(torch.equal(a, b) for a, b in zip(running, before, strict=True))


@pytest.mark.usefixtures("kernels")
def test_nan_goes_through() -> None:
    total, square_sum = eager_sums(torch.randn(SHAPE))
    square_sum[3] = torch.nan
    scale, shift = skelops.batch_norm_affine(total, square_sum, COUNT, None, None)
    assert scale.isnan().nonzero().tolist() == shift.isnan().nonzero().tolist() == [[3]]


@pytest.mark.every_level
@pytest.mark.usefixtures("kernels")
def test_other_dtypes_of_the_module() -> None:
    sums, (weight, bias) = eager_sums(torch.randn(SHAPE)), parameters()
    low = [p.detach().bfloat16().requires_grad_() for p in (weight, bias)]
    running = [torch.zeros(70, dtype=torch.bfloat16), torch.ones(70, dtype=torch.bfloat16)]
    total = sums[0].requires_grad_()
    scale, shift = skelops.batch_norm_affine(total, sums[1], COUNT, *low, *running)
    assert scale.dtype == torch.float32
    gradients = torch.autograd.grad([scale, shift], [*low, total], [torch.ones(70)] * 2)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.bfloat16, torch.float64]
    with skelops.backend("reference"):
        outputs = skelops.batch_norm_affine(total, sums[1], COUNT, *low)
        expected = torch.autograd.grad(outputs, [*low, total], [torch.ones(70)] * 2)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if a.dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    assert running[0].any()


def test_opcheck_and_compile() -> None:
    sums, (weight, bias) = eager_sums(torch.randn(SHAPE)), parameters()
    arguments = (*(s.requires_grad_() for s in sums), COUNT, weight, bias, 1e-5, torch.float32)
    torch.library.opcheck(torch.ops.skelops.batch_norm_affine.default, arguments)

    def run(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        B, _, T, V = x.shape
        scale, shift = skelops.batch_norm_affine(*skelops.channel_sums(x), B * T * V, weight, bias, mean, variance)
        return x * scale[:, None, None] + shift[:, None, None]

    compiled: Callable[..., Tensor] = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for B in (4, 7):
        x = torch.randn(B, 70, 3, 5).requires_grad_()
        ours, theirs = [torch.zeros(70), torch.ones(70)], [torch.zeros(70), torch.ones(70)]
        outputs = compiled(x, *ours), run(x, *theirs)
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in outputs))


def test_bad_input() -> None:
    sums, (weight, bias) = eager_sums(torch.randn(SHAPE)), parameters()
    with pytest.raises(TypeError, match="square_sum: expected torch.float64, got torch.float32"):
        skelops.batch_norm_affine(sums[0], sums[1].float(), COUNT, weight, bias)
    with pytest.raises(ValueError, match=r"weight: expected shape \(C\) with C=70, got \(3,\)"):
        skelops.batch_norm_affine(*sums, COUNT, weight[:3], bias)
    with pytest.raises(TypeError, match="bias: expected a tensor, got float"):
        skelops.batch_norm_affine(*sums, COUNT, weight, 0.5)
    with pytest.raises(ValueError, match="running_var: expected both running_mean and running_var or none, got None"):
        skelops.batch_norm_affine(*sums, COUNT, weight, bias, torch.zeros(70))
    with pytest.raises(ValueError, match=r"running_mean: expected tensors of C=70 channels together, got \[3, 4\]"):
        skelops.batch_norm_affine(*sums, COUNT, weight, bias, *[[torch.zeros(3), torch.zeros(4)]] * 2)
    for dtype in (torch.bfloat16, torch.float16, torch.int64, float):
        with pytest.raises(TypeError, match=f"dtype: expected torch.float32 or torch.float64, got {dtype}"):
            skelops.batch_norm_affine(*sums, COUNT, weight, bias, dtype=dtype)
    with pytest.raises(ValueError, match="count: expected more than 1 value per channel in training, got 1"):
        skelops.batch_norm_affine(*sums, 1, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_parameters_of_another_dtype(dtype: torch.dtype) -> None:
    """Those of a model that was cast as a whole, whose coefficients are float32 still."""
    sums = [s.requires_grad_() for s in eager_sums(torch.randn(SHAPE))]
    weight, bias = parameters(dtype)
    single = [p.detach().float().requires_grad_() for p in (weight, bias)]
    gradients = []
    for affine in ((weight, bias), single):
        scale, shift = skelops.batch_norm_affine(*sums, COUNT, *affine)
        gradients.append(torch.autograd.grad(scale.sum() + shift.square().sum(), [*sums, *affine]))
    for a, b, leaf in zip(*gradients, [*sums, weight, bias], strict=True):
        assert a.dtype == leaf.dtype
        torch.testing.assert_close(a, b.to(a.dtype))
