"""ema_update_ against the loop over tensors that it replaces."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_no_worse
from torch import Tensor

import skelops

SHAPES = [(3, 5), (1,), (), (0, 4), (64, 33, 9, 1), (40_003,), (7, 4, 3, 3)]


def make(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(s).to(dtype) for s in SHAPES], [torch.randn(s).to(dtype) for s in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("momentum", [0, 0.5, 0.999, 1.0])
def test_matches_eager(dtype: torch.dtype, momentum: float) -> None:
    targets, sources = make(dtype)
    truth = [momentum * t.double() + (1 - momentum) * s.double() for t, s in zip(targets, sources, strict=True)]
    eager = [
        (momentum * t.float() + (1 - momentum) * s.float()).to(dtype) for t, s in zip(targets, sources, strict=True)
    ]
    skelops.ema_update_(targets, sources, momentum)
    for i, parts in enumerate(zip(targets, eager, truth, strict=True)):
        assert_no_worse(*parts, what=f"tensor {i}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides(dtype: torch.dtype) -> None:
    def forms(x: Tensor) -> list[Tensor]:
        last = x.contiguous(memory_format=torch.channels_last)
        gaps = torch.zeros(16, 4, 3, 6, dtype=dtype)[::2, :, :, ::2].copy_(x)
        return [x.clone(), last, gaps, x.flip(0).flip(0), x[:1].clone().expand(8, 4, 3, 3)]

    start, source = (torch.randn(8, 4, 3, 3).to(dtype) for _ in range(2))
    for target in forms(start)[:4]:
        for origin in forms(source):
            expected = (0.75 * target.float() + 0.25 * origin.float()).to(dtype)
            moving = target.clone(memory_format=torch.preserve_format) if target.is_contiguous() else target
            before = moving.clone()
            skelops.ema_update_([moving], [origin], 0.75)
            torch.testing.assert_close(moving, expected)
            moving.copy_(before)


def test_parameters_and_counters() -> None:
    model, other = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)) for _ in range(2))
    other[1].num_batches_tracked.fill_(7)
    expected = [0.9 * a + 0.1 * b for a, b in zip(model.parameters(), other.parameters(), strict=True)]
    skelops.ema_update_(model.state_dict(keep_vars=True).values(), other.state_dict(keep_vars=True).values(), 0.9)
    for parameter, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, value)
        assert parameter.requires_grad
        assert parameter.is_leaf
    assert model[1].num_batches_tracked == 7
    skelops.ema_update_([torch.tensor(1)], [torch.tensor(5)], 0.9)
    skelops.ema_update_([], [], 0.9)


def test_mixed_dtypes_and_the_same_tensor() -> None:
    targets = [torch.ones(3), torch.ones(3).bfloat16(), torch.ones(3).double(), torch.ones(3).half()]
    skelops.ema_update_(targets, [torch.zeros_like(t) for t in targets], 0.5)
    assert all((t == 0.5).all() for t in targets)
    skelops.ema_update_(targets, targets, 0.5)
    assert all((t == 0.5).all() for t in targets)


def test_autograd_notices_the_write() -> None:
    weight, x = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    product = (weight * x).sum()
    skelops.ema_update_([weight], [torch.zeros(3)], 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_inference_tensors() -> None:
    with torch.inference_mode():
        target = torch.ones(3)
        skelops.ema_update_([target], [torch.zeros(3)], 0.5)
        assert (target == 0.5).all()


def test_compiles_whole() -> None:
    def step(targets: list[Tensor], sources: list[Tensor]) -> Tensor:
        skelops.ema_update_(targets, sources, 0.9)
        return targets[0] + 1

    results = []
    for run in (step, torch.compile(step, fullgraph=True)):
        torch.manual_seed(0)
        targets, sources = make(torch.float32)
        results.append((run(targets[:3], sources[:3]), *targets[:3]))
    torch.testing.assert_close(*results)


A, B = torch.zeros(2), torch.zeros(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([A], [A, A], 0.9), ValueError, "sources: expected 1 tensors as targets has, got 2"),
        (([A, A], [A, B], 0.9), ValueError, r"sources\[1\]: expected shape \(2,\) .* as targets\[1\], got \(3,\)"),
        (
            ([A, A], [A, A.double()], 0.9),
            ValueError,
            r"sources\[1\]: expected .* torch.float32 .* as targets\[1\], got .* torch.float64",
        ),
        (([A], [A.to("meta")], 0.9), ValueError, r"sources\[0\]: expected .* on cpu as targets\[0\], got .* on meta"),
        (([A, 3], [A, A], 0.9), TypeError, r"targets\[1\]: expected a tensor, got int"),
        (([A.expand(2)[:1].expand(4)], [torch.zeros(4)], 0.9), ValueError, r"targets\[0\]: .*share memory"),
        (([A], [A], 1.5), ValueError, "momentum: expected a number from 0 to 1, got 1.5"),
        (([A], [A], float("nan")), ValueError, "momentum: expected a number from 0 to 1, got nan"),
        (([A], [A], torch.tensor(0.5)), TypeError, "momentum: expected a number, got Tensor"),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        skelops.ema_update_(*arguments)
