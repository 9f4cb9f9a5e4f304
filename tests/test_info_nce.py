"""info_nce against eager PyTorch and against the oracles that hold for it."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from conftest import check_against_eager
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import skelops

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# N, Q, D, P, E
SHAPES = [
    (1, 1, 1, 0, 0),
    (3, 100, 7, 0, 2),
    (8, 700, 16, 1, 0),
    (9, 97, 33, 2, 3),
    (130, 600, 128, 0, 1),
    (20, 300, 260, 3, 0),
]


def eager(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    positives: Tensor | None = None,
    negatives: Tensor | None = None,
    temperature: float = 0.07,
    unit: bool = True,
) -> tuple[Tensor, Tensor]:
    """Loss and lse per row from all logits at once, by the softmax and the mask that multi-NCE code multiplies with."""
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    tensors = [None if x is None else x.to(dtype) for x in (query, key[:, None], positives, negatives)]
    query, *entries = [normalize(x, dim=-1) if unit and x is not None else x for x in tensors]
    blocks = [torch.einsum("nd,npd->np", query, x) for x in entries if x is not None]
    logits = torch.cat([*blocks, query @ queue.to(dtype).T], 1) / temperature
    P = 1 if positives is None else 1 + positives.shape[1]
    lse = logits.logsumexp(1)
    return -((logits[:, :P].logsumexp(1) - lse) - math.log(P)), lse


def ours(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    positives: Tensor | None = None,
    negatives: Tensor | None = None,
    **options: object,
) -> tuple[Tensor, Tensor]:
    result = skelops.info_nce(
        query, key, queue, extra_positives=positives, extra_negatives=negatives, reduction="none", **options
    )
    return result.loss, result.lse


def make(N: int, Q: int, D: int, P: int = 0, E: int = 0) -> list[Tensor | None]:
    extras = [torch.randn(N, n, D) if n else None for n in (P, E)]
    return [2 * torch.randn(N, D), torch.randn(N, D), normalize(torch.randn(Q, D), dim=1), *extras]


def given(inputs: list[Tensor | None]) -> list[int]:
    """The positions of what may get a gradient: everything but the queue."""
    return [i for i, x in enumerate(inputs) if x is not None and i != 2]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.usefixtures("kernels")
def test_matches_eager(shape: tuple[int, ...], unit: bool) -> None:
    inputs = make(*shape)
    for temperature in (0.07, 1.5):
        check_against_eager(
            lambda *args: ours(*args, temperature=temperature, normalize=unit),  # noqa: B023
            lambda *args: eager(*args, temperature=temperature, unit=unit),  # noqa: B023
            inputs,
            given(inputs),
        )


@pytest.mark.every_level
@pytest.mark.parametrize("query_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queue_dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("kernels")
def test_mixed_dtypes(query_dtype: torch.dtype, queue_dtype: torch.dtype) -> None:
    for N in (5, 37):
        query, key, queue, positives, negatives = make(N, 301, 19, 1, 2)
        inputs = [
            query.to(query_dtype),
            key.to(queue_dtype),
            queue.to(queue_dtype),
            positives.to(query_dtype),
            negatives,
        ]
        check_against_eager(ours, eager, inputs, given(inputs))
        assert skelops.info_nce(*inputs[:3]).loss.dtype == torch.float32


@pytest.mark.parametrize("wanted", [*product([False, True], repeat=4)], ids=str)
@pytest.mark.usefixtures("kernels")
def test_every_subset_of_gradients(wanted: tuple[bool, ...]) -> None:
    inputs = make(60, 200, 24, 2, 1)
    chosen = [i for i, use in zip((0, 1, 3, 4), wanted, strict=True) if use]
    if chosen:
        check_against_eager(ours, eager, inputs, chosen)
    else:
        assert not skelops.info_nce(*inputs[:3]).loss.requires_grad
        torch.testing.assert_close(ours(*inputs), eager(*inputs))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.usefixtures("kernels")
def test_reductions(reduction: str) -> None:
    def reduced(*args: Tensor) -> Tensor:
        return skelops.info_nce(*args, reduction=reduction).loss

    def expected(*args: Tensor) -> Tensor:
        loss = eager(*args)[0]
        return loss if reduction == "none" else getattr(loss, reduction)()

    for N in (1, 3, 40):
        check_against_eager(reduced, expected, make(N, 90, 10)[:3], [0, 1])


@pytest.mark.usefixtures("kernels")
def test_upstream_gradients_that_are_expanded_or_partial() -> None:
    inputs = make(12, 80, 6)[:3]
    for i in (0, 1):
        inputs[i].requires_grad_()
    for pick in (lambda loss, lse: loss.sum(), lambda loss, lse: lse.sum(), lambda loss, lse: (loss * lse).mean()):
        got = torch.autograd.grad(pick(*ours(*inputs)), inputs[:2])
        torch.testing.assert_close(got, torch.autograd.grad(pick(*eager(*inputs)), inputs[:2]), atol=1e-5, rtol=1e-4)


@pytest.mark.every_level
@pytest.mark.usefixtures("kernels")
def test_is_cross_entropy_with_label_zero() -> None:
    query, key, queue, _, negatives = make(30, 500, 24, 0, 2)
    result = skelops.info_nce(query, key, queue.t(), 0.2, extra_negatives=negatives)
    q, k, e = (normalize(x, dim=-1) for x in (query, key, negatives))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T, torch.einsum("nd,ned->ne", q, e)], 1) / 0.2
    torch.testing.assert_close(result.loss, cross_entropy(logits, torch.zeros(30, dtype=torch.int64)))
    order = logits.argsort(1, descending=True)
    assert torch.equal(result.rank, (order == 0).nonzero()[:, 1])


@pytest.mark.usefixtures("kernels")
def test_multi_nce() -> None:
    query, key, queue, positives, _ = make(30, 200, 24, 3)
    q = normalize(query, dim=-1)
    every = torch.cat([normalize(key, dim=-1)[:, None], normalize(positives, dim=-1)], 1)
    softmax = (torch.cat([torch.einsum("nd,npd->np", q, every), q @ queue.T], 1) / 0.2).softmax(1)
    result = skelops.info_nce(query, key, queue, 0.2, extra_positives=positives, reduction="none")
    torch.testing.assert_close(result.loss, -(softmax[:, :4].sum(1) / 4).log())


@pytest.mark.parametrize("N", [2, 40])
@pytest.mark.usefixtures("kernels")
def test_zero_query(N: int) -> None:
    _, key, queue, _, negatives = make(N, 1000, 16, 0, 3)
    result = skelops.info_nce(torch.zeros(N, 16), key, queue, extra_negatives=negatives, reduction="none")
    torch.testing.assert_close(result.loss, torch.full((N,), math.log(1000 + 1 + 3)))
    assert (result.rank == 0).all()


@pytest.mark.parametrize("N", [2, 40])
@pytest.mark.usefixtures("kernels")
def test_order_of_the_queue_and_its_layout_do_not_matter(N: int) -> None:
    query, key, queue, *_ = make(N, 1000, 16)
    result = skelops.info_nce(query, key, queue, reduction="none")
    mixed = skelops.info_nce(query, key, queue[torch.randperm(1000)].t(), reduction="none")
    torch.testing.assert_close(result, mixed)
    assert torch.equal(skelops.info_nce(query, key, queue.t().contiguous(), reduction="none").loss, result.loss)


@pytest.mark.usefixtures("kernels")
def test_groups_share_one_pass() -> None:
    query, key, queue = torch.randn(3, 10, 16), torch.randn(10, 16), normalize(torch.randn(300, 16), dim=1)
    negatives = torch.randn(3, 1, 2, 16)
    leaves = [x.requires_grad_() for x in (query, key, negatives)]
    together = skelops.info_nce(query, key, queue, extra_negatives=negatives, reduction="none")
    assert together.loss.shape == together.lse.shape == together.rank.shape == (3, 10)
    apart = [ours(query[g], key, queue, None, negatives[g].expand(10, 2, 16))[0] for g in range(3)]
    torch.testing.assert_close(together.loss, torch.stack(apart))
    weights = torch.randn(3, 10)
    got = torch.autograd.grad((together.loss * weights).sum(), leaves)
    torch.testing.assert_close(
        got, torch.autograd.grad((torch.stack(apart) * weights).sum(), leaves), atol=1e-5, rtol=1e-4
    )
    assert skelops.info_nce(query[0, 0], key[0], queue, reduction="none").loss.shape == ()


@pytest.mark.usefixtures("kernels")
def test_strided_inputs() -> None:
    query, key, queue, positives, _ = make(20, 300, 12, 2)
    plain = skelops.info_nce(query, key, queue, extra_positives=positives, reduction="none")
    wide = torch.randn(20, 24)
    wide[:, ::2] = query
    queues = torch.zeros(600, 36)[::2, ::3].copy_(queue)
    strided = positives.transpose(0, 2).contiguous().transpose(0, 2)
    got = skelops.info_nce(wide[:, ::2], key.t().contiguous().t(), queues, extra_positives=strided, reduction="none")
    assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))


@pytest.mark.usefixtures("kernels")
def test_empty_batch_and_empty_queue() -> None:
    query, key, queue, *_ = make(5, 50, 8)
    none = skelops.info_nce(query[:0].requires_grad_(), key[:0], queue, reduction="sum")
    none.loss.backward()
    assert none.loss == 0
    assert none.rank.shape == (0,)
    assert skelops.info_nce(query[:0], key[:0], queue).loss.isnan()
    for valid, slots in ((torch.tensor([0]), queue), (None, queue[:0])):
        result = skelops.info_nce(query.requires_grad_(), key, slots, valid=valid)
        assert result.loss == 0
        assert (result.rank == 0).all()
        assert torch.autograd.grad(result.loss, query)[0].abs().max() < 1e-6


@pytest.mark.usefixtures("kernels")
def test_valid_slots() -> None:
    query, key, queue, *_ = make(40, 600, 8)
    expected = ours(query, key, queue[:300])
    queue[300:] = torch.nan
    torch.testing.assert_close(ours(query, key, queue, valid=torch.tensor(300)), expected)


def test_queue_may_be_overwritten_before_backward() -> None:
    query, key, queue, *_ = make(40, 600, 8)
    query.requires_grad_()
    (expected,) = torch.autograd.grad(skelops.info_nce(query, key, queue).loss, query)
    loss = skelops.info_nce(query, key, queue).loss
    version = queue._version
    skelops.enqueue_(queue, torch.randn(64, 8), torch.zeros(1, dtype=torch.int64))
    assert queue._version > version
    assert torch.equal(torch.autograd.grad(loss, query)[0], expected)


@pytest.mark.every_level
@pytest.mark.parametrize("N", [4, 40])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.usefixtures("kernels")
def test_what_is_not_finite_stays_so(N: int, value: float) -> None:
    for unit in (True, False):
        inputs = make(N, 300, 12)[:3]
        for place in (inputs[0][1], inputs[1][2], inputs[2][200]):
            place[3] = value
            expected = eager(*inputs, unit=unit)[0]
            assert torch.equal(
                ours(*inputs, normalize=unit)[0].isnan() | expected.isinf(), expected.isnan() | expected.isinf()
            )


@pytest.mark.usefixtures("kernels")
def test_vanishing_loss_keeps_its_digits() -> None:
    query = normalize(torch.randn(20, 32), dim=1)
    queue = normalize(torch.randn(200, 32), dim=1) * 0.05
    loss, _ = ours(query, query, queue)
    expected, _ = eager(query.double(), query.double(), queue.double())
    torch.testing.assert_close(loss.double(), expected, atol=3e-7, rtol=1e-4)


@pytest.mark.parametrize(("P", "E"), [(0, 2), (2, 3)])
@pytest.mark.usefixtures("kernels")
def test_gradients_where_all_logits_are_far_below_zero(P: int, E: int) -> None:
    query = normalize(1 + 0.01 * torch.randn(4, 6), dim=1).requires_grad_()
    key, queue = -query.detach(), -query.detach().mT.contiguous()
    positives, negatives = (None if size == 0 else key[:, None].expand(-1, size, -1) for size in (P, E))
    found = skelops.info_nce(query, key, queue, 0.01, extra_positives=positives, extra_negatives=negatives)
    (grad,) = torch.autograd.grad(found.loss + found.lse.sum(), query)
    assert grad.isfinite().all()


def test_gradients_of_the_reference() -> None:
    inputs = [x.double() for x in make(3, 9, 5, 2, 1)]
    query, key, queue, positives, negatives = inputs
    leaves = [x.requires_grad_() for x in (query, key, positives, negatives)]
    for unit in (True, False):
        torch.autograd.gradcheck(lambda q, k, p, n: ours(q, k, queue, p, n, normalize=unit, temperature=0.5), leaves)  # noqa: B023
    torch.autograd.gradcheck(lambda q, k: skelops.info_nce(q, k, queue, valid=torch.tensor(4)).loss, leaves[:2])
