"""bank_contrast against a loop over the anchors in eager PyTorch, and against the oracles that hold for it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from conftest import check_against_eager
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import skelops
from skelops._triton import interpreted
from skelops.ops.bank_contrast import reference
from skelops.ops.norm_act.reference import hashes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Inputs(NamedTuple):
    features: Tensor
    labels: Tensor
    bank: Tensor
    bank_labels: Tensor
    visited: Tensor
    seed: Tensor


class Counts(NamedTuple):
    positives: int
    hard_negatives: int
    random_negatives: int


SMALL = Counts(4, 9, 7)
# N, Q, D, classes, counts: one of everything; partial tiles and lanes; anchors that are left out; more than a block of
# anchors; more candidates than there is room for at a time, and more room than the least.
SHAPES = [
    (1, 3, 1, 2, Counts(1, 1, 1)),
    (3, 100, 7, 3, Counts(5, 20, 9)),
    (6, 97, 33, 3, Counts(30, 10, 40)),
    (70, 500, 140, 3, Counts(100, 40, 41)),
    (5, 4000, 16, 2, Counts(64, 300, 20)),
]


def make(N: int, Q: int, D: int, classes: int = 3, dtype: torch.dtype = torch.float32) -> Inputs:
    """Slots that were not visited hold NaN; the classes are far from 0, where 32 bits do not reach."""
    names = torch.tensor([-(2**40), 2**33 + 1, 2**33, 5, -1, 2**62, 7])[:classes]
    visited = torch.rand(Q) < 0.9 if Q > 10 else torch.ones(Q, dtype=torch.bool)
    bank = normalize(torch.randn(Q, D), dim=1).to(dtype)
    bank[~visited] = torch.nan
    labels, bank_labels = names[torch.arange(N) % classes], names[torch.arange(Q) % classes]
    return Inputs(2 * torch.randn(N, D), labels, bank, bank_labels, visited, torch.tensor([3]))


def eager(inputs: Inputs, counts: Counts = SMALL, temperature: float = 0.8) -> Tensor:
    """The loss in the style of the released code: per anchor a mask, sorts, a draw, and the logits of all pairs."""
    features, labels, bank, bank_labels, visited, seed = inputs
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    unit, losses = normalize(features.to(dtype), dim=1), []
    for i, label in enumerate(labels):
        own = (visited & (bank_labels == label)).nonzero()[:, 0]
        others = (visited & (bank_labels != label)).nonzero()[:, 0]
        if len(own) < counts.positives or len(others) < max(counts[1:]):
            continue
        positive, negative = (bank[slots].to(dtype) @ unit[i] for slots in (own, others))
        drawn = hashes(i * len(bank) + others, seed).argsort(stable=True)[: counts.random_negatives]
        hard = positive.sort(stable=True)[0][: counts.positives]
        hardest = negative.sort(stable=True, descending=True)[0][: counts.hard_negatives]
        for chosen in (hardest, negative[drawn]):
            logits = torch.cat([hard[:, None], chosen.expand(len(hard), -1)], 1) / temperature
            losses.append(cross_entropy(logits, torch.zeros(len(hard), dtype=torch.int64)))
    return torch.stack(losses).mean() if losses else unit.sum() * 0


def ours(inputs: Inputs, counts: Counts = SMALL, **options: Any) -> Tensor:
    return skelops.bank_contrast(*inputs, **counts._asdict(), **options).loss


def check(inputs: Inputs, counts: Counts = SMALL, temperature: float = 0.8) -> None:
    check_against_eager(
        lambda features, bank: ours(inputs._replace(features=features, bank=bank), counts, temperature=temperature),
        lambda features, bank: eager(inputs._replace(features=features, bank=bank), counts, temperature),
        [inputs.features, inputs.bank],
    )


def gradient(inputs: Inputs, counts: Counts = SMALL) -> Tensor:
    features = inputs.features.detach().clone().requires_grad_()
    return torch.autograd.grad(ours(inputs._replace(features=features), counts), features)[0]


@pytest.mark.every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_eager(shape: tuple[Any, ...], kernels: str) -> None:
    *sizes, counts = shape
    if kernels == "triton" and interpreted():
        sizes[0] = min(sizes[0], 3)
    inputs = make(*sizes)
    for temperature in (0.8, 0.05):
        check(inputs, counts, temperature)


@pytest.mark.every_level
@pytest.mark.parametrize("features_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bank_dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("kernels")
def test_mixed_dtypes(features_dtype: torch.dtype, bank_dtype: torch.dtype) -> None:
    inputs = make(5, 120, 19, dtype=bank_dtype)
    inputs = inputs._replace(features=inputs.features.to(features_dtype))
    check(inputs)
    assert ours(inputs).dtype == torch.float32


@pytest.mark.usefixtures("kernels")
def test_is_the_reference() -> None:
    inputs = make(5, 150, 12)
    loss, kept = skelops.bank_contrast(*inputs, **SMALL._asdict())
    with skelops.backend("reference"):
        expected = skelops.bank_contrast(*inputs, **SMALL._asdict())
    torch.testing.assert_close((loss, kept), tuple(expected))


@pytest.mark.usefixtures("kernels")
def test_anchors_without_enough_slots_are_left_out() -> None:
    inputs = make(6, 90, 8)
    inputs.visited[inputs.bank_labels == inputs.labels[1]] = False
    loss, kept = skelops.bank_contrast(*inputs, **SMALL._asdict())
    assert kept.tolist() == [True, False, True] * 2
    torch.testing.assert_close(loss, eager(inputs))
    assert (gradient(inputs)[1::3] == 0).all()
    enough = int((inputs.visited & (inputs.bank_labels == inputs.labels[0])).sum())
    others = int(inputs.visited.sum()) - enough
    for counts, expected in (
        (Counts(enough, others, others), True),
        (Counts(enough + 1, 1, 1), False),
        (Counts(1, others + 1, 1), False),
        (Counts(1, 1, others + 1), False),
    ):
        assert bool(skelops.bank_contrast(*inputs, **counts._asdict()).kept[0]) is expected
        check(inputs, counts)


@pytest.mark.parametrize("slots", [0, 60])
@pytest.mark.usefixtures("kernels")
def test_cold_start_gives_zero(slots: int) -> None:
    inputs = make(5, 60, 8)
    inputs = inputs._replace(bank=inputs.bank[:slots] * torch.nan, bank_labels=inputs.bank_labels[:slots])
    inputs = inputs._replace(visited=torch.zeros(slots, dtype=torch.bool))
    loss, kept = skelops.bank_contrast(*inputs, **SMALL._asdict())
    assert loss == 0
    assert not kept.any()
    assert torch.equal(gradient(inputs), torch.zeros(5, 8))
    assert torch.equal(gradient(inputs._replace(features=inputs.features * torch.nan)), torch.zeros(5, 8))


def test_is_zero_without_anchors_and_stays_in_the_graph() -> None:
    inputs = make(5, 60, 8)
    inputs = inputs._replace(features=inputs.features[:0].requires_grad_(), labels=inputs.labels[:0])
    loss = ours(inputs)
    loss.backward()
    assert loss == 0
    assert inputs.features.grad.shape == (0, 8)


@pytest.mark.every_level
@pytest.mark.usefixtures("kernels")
def test_equal_similarities_give_a_logarithm() -> None:
    inputs = make(4, 100, 6)
    inputs = inputs._replace(bank=normalize(torch.ones(100, 6), dim=1))
    expected = (math.log(1 + SMALL.hard_negatives) + math.log(1 + SMALL.random_negatives)) / 2
    torch.testing.assert_close(ours(inputs), torch.tensor(expected))


def one_hot(Q: int) -> Inputs:
    """Slots that are unit vectors, anchors that are slot 0: a gradient tells which other slots were chosen."""
    visited = torch.ones(Q, dtype=torch.bool)
    labels = torch.tensor([0, 0])
    return Inputs(torch.eye(Q)[labels], labels, torch.eye(Q), torch.arange(Q) % 3, visited, torch.tensor([3]))


@pytest.mark.every_level
@pytest.mark.usefixtures("kernels")
def test_of_equal_similarities_the_first_slots_are_chosen() -> None:
    inputs, counts = one_hot(60), Counts(3, 4, 1)
    chosen = gradient(inputs, counts) != 0
    others = [j for j in range(60) if j % 3]
    for anchor in range(2):
        drawn = min(others, key=lambda j: int(hashes(torch.tensor(anchor * 60 + j), inputs.seed)))
        assert set(chosen[anchor].nonzero()[:, 0].tolist()) == {3, 6, 9, 1, 2, 4, 5, drawn}


def test_draws_are_uniform_and_independent() -> None:
    inputs, counts = one_hot(60), Counts(1, 1, 10)
    draws = 400
    drawn = torch.zeros(2, 60)
    both = 0.0
    for seed in range(draws):
        chosen = (gradient(inputs._replace(seed=torch.tensor([seed])), counts) != 0).float()
        chosen[:, :2] = 0  # the nearest negative is slot 1, which would hide whether it was drawn
        chosen[:, 3] = 0  # the positive
        assert (chosen[:, 0::3] == 0).all()
        drawn += chosen
        both += float((chosen[0] * chosen[1]).sum())
    rates = drawn[:, [j for j in range(2, 60) if j % 3]] / draws
    deviation = math.sqrt(0.25 * 0.75 / draws)
    assert (rates - 0.25).abs().max() < 4.5 * deviation
    assert abs(float(rates.mean()) - 0.25) < 0.01
    assert abs(both / draws / rates.shape[1] - 0.25**2) < 0.01


@pytest.mark.usefixtures("kernels")
def test_strided_inputs() -> None:
    inputs = make(5, 120, 12)
    wide = torch.zeros(5, 24)[:, ::2].copy_(inputs.features)
    bank = inputs.bank.t().contiguous().t()
    spread = (torch.stack([x, x], 1)[:, 0] for x in (inputs.labels, inputs.bank_labels, inputs.visited))
    labels, bank_labels, visited = spread
    assert torch.equal(ours(Inputs(wide, labels, bank, bank_labels, visited, inputs.seed)), ours(inputs))


@pytest.mark.usefixtures("kernels")
def test_zero_features() -> None:
    inputs = make(4, 100, 8)
    inputs.features[1] = 0
    check(inputs)
    assert gradient(inputs).isfinite().all()


@pytest.mark.every_level
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.usefixtures("kernels")
def test_what_is_not_finite_stays_so(value: float) -> None:
    inputs = make(4, 100, 8)
    for place in (inputs.features[1], inputs.bank[int(inputs.visited.nonzero()[9])]):
        before = place.clone()
        place[3] = value
        assert not ours(inputs).isfinite()
        place.copy_(before)
    assert ours(inputs).isfinite()


@pytest.mark.usefixtures("kernels")
def test_small_losses_keep_their_digits() -> None:
    inputs = make(4, 100, 16)
    own = inputs.labels[0]
    inputs.bank[:] = normalize(torch.randn(100, 16), dim=1) * 0.05
    inputs.bank[inputs.bank_labels == own] = normalize(inputs.features[:1], dim=1)
    inputs = inputs._replace(features=inputs.features[:1], labels=inputs.labels[:1])
    loss = ours(inputs, temperature=0.07)
    expected = eager(inputs._replace(features=inputs.features.double()), SMALL, 0.07)
    assert expected < 1e-4
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)


def test_bank_may_be_overwritten_before_backward() -> None:
    inputs = make(5, 120, 8)
    expected = gradient(inputs)
    loss = ours(inputs._replace(features=inputs.features.requires_grad_()))
    inputs.bank.zero_()
    assert torch.equal(torch.autograd.grad(3 * loss, inputs.features)[0], 3 * expected)


def test_gradients_of_the_reference() -> None:
    inputs = make(4, 60, 5)
    inputs = inputs._replace(features=inputs.features.double().requires_grad_(), bank=inputs.bank.double())
    torch.autograd.gradcheck(lambda features: ours(inputs._replace(features=features)), inputs.features)


@pytest.mark.parametrize("gradient", [True, False])
def test_opcheck(gradient: bool) -> None:
    inputs = make(4, 60, 6)
    inputs = inputs._replace(features=inputs.features.requires_grad_(gradient))
    torch.library.opcheck(torch.ops.skelops.bank_contrast.default, (*inputs, *SMALL, 0.8, gradient))


def test_compiles_whole() -> None:
    def step(features: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        loss, kept = skelops.bank_contrast(2 * features, *rest, **SMALL._asdict())
        return 2 * loss, kept

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for N, Q in ((5, 120), (7, 150)):
        inputs = make(N, Q, 12)
        results = []
        for run in (step, compiled):
            features = inputs.features.clone().requires_grad_()
            loss, kept = run(features, *inputs[1:])
            results.append((loss, kept, torch.autograd.grad(loss, features)[0]))
        torch.testing.assert_close(*results)


def test_runs_are_bitwise_equal(kernels: str) -> None:
    inputs = make(70 if kernels == "cpu" else 3, 900 if kernels == "cpu" else 200, 40)
    threads = torch.get_num_threads()
    results = []
    for count in (threads, 1):
        torch.set_num_threads(count)
        results.append((ours(inputs), gradient(inputs)))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_inputs_are_not_written() -> None:
    inputs = make(5, 120, 12)
    copies = [x.clone() for x in inputs]
    gradient(inputs)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(inputs, copies, strict=True))


def test_double_backward_is_refused() -> None:
    inputs = make(5, 120, 12)
    features = inputs.features.requires_grad_()
    (first,) = torch.autograd.grad(ours(inputs), features, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        first.sum().backward()


def test_autocast_does_not_lower() -> None:
    inputs = make(5, 120, 12)
    for name in ("auto", "reference"):
        with skelops.backend(name):
            plain = ours(inputs)
            with torch.autocast(torch.get_default_device().type, torch.bfloat16):
                assert torch.equal(ours(inputs), plain)
    half = inputs._replace(features=inputs.features.bfloat16())
    assert gradient(half).dtype == torch.bfloat16


def test_dtypes_without_a_kernel() -> None:
    inputs = make(5, 120, 12)
    half = inputs._replace(features=inputs.features.half(), bank=inputs.bank.half())
    torch.testing.assert_close(ours(half), eager(half))
    assert ours(inputs._replace(bank=inputs.bank.double())).dtype == torch.float64


def test_reference_chooses_members_only() -> None:
    keys = torch.tensor([[3.0, torch.nan, 1.0, -torch.inf, 1.0]])
    member = torch.tensor([[True, True, True, False, True]])
    assert reference.first(keys, member, 4).tolist() == [[2, 4, 0, 1]]
    assert reference.first(keys, member, 3, descending=True).tolist() == [[1, 0, 2]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(3)}, ValueError, r"features: expected shape \(N, D\), got \(3,\)"),
        ({"labels": torch.zeros(4).long()}, ValueError, r"labels: expected shape \(N\) with N=3, got \(4,\)"),
        ({"labels": torch.zeros(3)}, TypeError, "labels: expected torch.int64, got torch.float32"),
        ({"labels": torch.zeros(3).int()}, TypeError, "labels: expected torch.int64, got torch.int32"),
        ({"bank": torch.zeros(9, 5)}, ValueError, r"bank: expected shape \(Q, D\) with .*D=4.*, got \(9, 5\)"),
        ({"features": torch.zeros(3, 0), "bank": torch.zeros(9, 0)}, ValueError, "features: expected D of at least 1"),
        ({"bank": [1.0]}, TypeError, "bank: expected a tensor, got list"),
        ({"bank_labels": torch.zeros(8).long()}, ValueError, r"bank_labels: expected shape \(Q\) with Q=9"),
        ({"visited": torch.zeros(9)}, TypeError, "visited: expected torch.bool, got torch.float32"),
        ({"seed": torch.zeros(2).long()}, ValueError, r"seed: expected shape \(1\), got \(2,\)"),
        ({"seed": 5}, TypeError, "seed: expected a tensor, got int"),
        ({"positives": 0}, ValueError, "positives: expected a positive integer, got 0"),
        ({"hard_negatives": 2.5}, ValueError, "hard_negatives: expected a positive integer, got 2.5"),
        ({"random_negatives": True}, ValueError, "random_negatives: expected a positive integer, got True"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a finite number above zero, got 0.0"),
        ({"bank": torch.zeros(9, 4, device="meta")}, ValueError, "bank: expected device .* as features, got meta"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    integers = torch.zeros(9, dtype=torch.int64)
    inputs = Inputs(torch.zeros(3, 4), integers[:3], torch.zeros(9, 4), integers, integers > 0, integers[:1])
    with pytest.raises(error, match=message):
        skelops.bank_contrast(**{**inputs._asdict(), **change})
