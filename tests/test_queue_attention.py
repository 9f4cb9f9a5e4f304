"""queue_attention against eager PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import check_against_eager
from torch import Tensor

import skelops
from skelops import _triton
from skelops._triton import interpreted
from skelops.ops.queue_attention import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# N, Q, D: both kernels (few rows and many), partial tiles, panels and lanes, several blocks of rows and chunks of the
# queue.
SHAPES = [
    (1, 1, 1),
    (3, 100, 7),
    (8, 700, 16),
    (9, 97, 33),
    (70, 1500, 20),
    (130, 64, 128),
    (200, 600, 500),
    (5, 900, 260),
]


def unit_queue(Q: int, D: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(Q, D), dim=1).to(dtype)


def layouts(queue: Tensor) -> list[Tensor]:
    """The same (Q, D) queue by slots, as a view of MoCo's layout, and with gaps along both axes."""
    gaps = torch.empty(2 * queue.shape[0], 3 * queue.shape[1], dtype=queue.dtype)[::2, ::3]
    return [queue, queue.t().contiguous().t(), gaps.copy_(queue)]


def check(query: Tensor, queue: Tensor, scale: float, valid: Tensor | None = None) -> None:
    check_against_eager(
        lambda q, k: skelops.queue_attention(q, k, scale, valid),
        lambda q, k: reference.queue_attention(q, k, scale, valid),
        [query, queue],
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_eager(shape: tuple[int, int, int], kernels: str) -> None:
    N, Q, D = shape
    if kernels == "triton" and interpreted():
        N, Q = min(N, 20), min(Q, 70)
    query = 3 * torch.randn(N, D)
    for queue in layouts(unit_queue(Q, D)):
        check(query, queue, 2.5)
        check(query, queue, 2.5, torch.tensor(Q // 2 + 1))


@pytest.mark.every_level
@pytest.mark.parametrize("query_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queue_dtype", DTYPES, ids=str)
def test_mixed_dtypes(query_dtype: torch.dtype, queue_dtype: torch.dtype, kernels: str) -> None:
    for N in (5, 37) if kernels == "cpu" else (37,):
        for queue in layouts(unit_queue(301, 19, queue_dtype)):
            check((3 * torch.randn(N, 19)).to(query_dtype), queue, 2.5)


@pytest.mark.usefixtures("kernels")
def test_both_layouts_and_the_square_one() -> None:
    query, queue = torch.randn(4, 6), unit_queue(50, 6)
    by_slot, by_dim = skelops.queue_attention(query, queue), skelops.queue_attention(query, queue.t())
    assert torch.equal(by_slot.lse, by_dim.lse)
    square = unit_queue(6, 6)
    torch.testing.assert_close(skelops.queue_attention(query, square).lse, (query @ square.T).logsumexp(1))


@pytest.mark.parametrize("N", [4, 40])
@pytest.mark.usefixtures("kernels")
def test_empty_sets(N: int) -> None:
    query, queue = torch.randn(N, 8, requires_grad=True), unit_queue(20, 8)
    for slots, valid in ((queue, torch.tensor([0])), (queue, torch.tensor(-3)), (queue[:0], None)):
        lse, out = skelops.queue_attention(query, slots, 1.0, valid)
        assert (lse == -torch.inf).all()
        assert (out == 0).all()
        assert (torch.autograd.grad(out.sum(), query)[0] == 0).all()
    assert skelops.queue_attention(query, queue, 1.0, torch.tensor(99)).lse.equal(
        skelops.queue_attention(query, queue).lse
    )
    lse, out = skelops.queue_attention(query[:0], queue)
    assert lse.shape == (0,)
    assert out.shape == (0, 8)


@pytest.mark.usefixtures("kernels")
def test_slots_that_are_not_filled_may_hold_anything() -> None:
    queue = unit_queue(300, 8)
    queue[200:] = torch.nan
    for N in (4, 40):
        query = torch.randn(N, 8, requires_grad=True)
        for valid in (torch.tensor(200), torch.tensor([[200]])):
            lse, out = skelops.queue_attention(query, queue, 1.0, valid)
            torch.testing.assert_close(lse, (query @ queue[:200].T).logsumexp(1))
            (gradient,) = torch.autograd.grad(out.sum(), query)
            assert gradient.isfinite().all()
            with skelops.backend("reference"):
                torch.testing.assert_close(skelops.queue_attention(query, queue, 1.0, valid).out, out)


@pytest.mark.parametrize("dtype", [torch.float16], ids=str)
@pytest.mark.parametrize("by_dim", [False, True])
@pytest.mark.usefixtures("kernels")
def test_addresses_past_32_bits(dtype: torch.dtype, by_dim: bool) -> None:
    # Zeros that are never touched take no memory; the last slot (or dimension) begins at element 2**31.
    memory = torch.from_numpy(np.zeros(2**31 + 64, np.float16)).to(torch.get_default_device())
    slots = memory.as_strided((3, 20), (2**30, 1)) if not by_dim else memory.as_strided((20, 3), (1, 2**30))
    slots.copy_(unit_queue(*slots.shape, dtype))
    query = torch.randn(4, slots.shape[1]).to(dtype)
    theirs = reference.queue_attention(query, slots, 3.0, None)
    for ours, expected in zip(skelops.queue_attention(query, slots, 3.0), theirs, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
@pytest.mark.usefixtures("kernels")
def test_one_output_alone(wanted: tuple[bool, bool]) -> None:
    def pick(function):
        return lambda q, k: [o for o, use in zip(function(q, k), wanted, strict=True) if use]

    inputs = [torch.randn(20, 12), unit_queue(333, 12)]
    check_against_eager(
        pick(skelops.queue_attention), pick(lambda q, k: reference.queue_attention(q, k, 1.0, None)), inputs
    )


@pytest.mark.usefixtures("kernels")
def test_expanded_upstream_gradient() -> None:
    query, queue = torch.randn(20, 12, requires_grad=True), unit_queue(333, 12)
    lse, out = skelops.queue_attention(query, queue)
    (ours,) = torch.autograd.grad(lse.sum() + out.sum(), query)
    lse, out = reference.queue_attention(query, queue, 1.0, None)
    (theirs,) = torch.autograd.grad(lse.sum() + out.sum(), query)
    torch.testing.assert_close(ours, theirs)


def test_queue_overwritten_before_backward() -> None:
    query, queue = torch.randn(20, 12, requires_grad=True), unit_queue(333, 12)
    pointer = torch.zeros(1, dtype=torch.int64)
    (expected,) = torch.autograd.grad(skelops.queue_attention(query, queue).lse.sum(), query)
    lse, out = skelops.queue_attention(query, queue)
    skelops.enqueue_(queue, torch.ones(5, 12), pointer)
    assert torch.equal(torch.autograd.grad(lse.sum(), query, retain_graph=True)[0], expected)
    with pytest.raises(RuntimeError, match=r"queue_attention: queue .* was overwritten"):
        torch.autograd.grad(out.sum(), query)


@pytest.mark.every_level
@pytest.mark.parametrize("N", [4, 40])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.usefixtures("kernels")
def test_what_is_not_finite_stays_so(N: int, value: float) -> None:
    query, queue = torch.randn(N, 12), unit_queue(333, 12)
    for place in (query[1, 3:4], queue[200, :1]):
        place.fill_(value)
        ours, theirs = skelops.queue_attention(query, queue), reference.queue_attention(query, queue, 1.0, None)
        assert torch.equal(ours.out.isfinite(), theirs[1].isfinite())
        assert not theirs[1].isfinite().all()


@pytest.mark.usefixtures("kernels")
def test_extreme_logits() -> None:
    check(torch.randn(40, 12), unit_queue(333, 12), 1e4)


def test_gradients_of_the_reference() -> None:
    queue = unit_queue(9, 5).double()
    query = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    for valid in (None, torch.tensor(4)):
        torch.autograd.gradcheck(lambda q: skelops.queue_attention(q, queue, 2.0, valid), query)  # noqa: B023
    torch.autograd.gradgradcheck(lambda q: skelops.queue_attention(q, queue, 2.0).lse, query)


@pytest.mark.parametrize("valid", [None, torch.tensor(30), torch.tensor([30], dtype=torch.int32)], ids=str)
@pytest.mark.parametrize("by_dim", [False, True])
def test_opcheck(valid: Tensor | None, by_dim: bool) -> None:
    queue = unit_queue(40, 6)
    queue = queue.t().contiguous().t() if by_dim else queue
    query = torch.randn(5, 6, requires_grad=True)
    torch.library.opcheck(torch.ops.skelops.queue_attention.default, (query, queue, 2.0, valid))
    lse, out = skelops.queue_attention(query.detach(), queue, 2.0, valid)
    for upstream in (None, torch.randn(5)):
        arguments = (upstream, torch.randn(5, 6), query.detach(), queue, lse, out, 2.0, valid)
        torch.library.opcheck(torch.ops.skelops.queue_attention_backward.default, arguments)


def test_compiles_whole() -> None:
    query, queue = torch.randn(20, 12, requires_grad=True), unit_queue(333, 12)

    def step(q: Tensor, k: Tensor) -> Tensor:
        lse, out = skelops.queue_attention(q, k.t(), 3.0)
        return (lse[:, None] * out).sum()

    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(compiled(query, queue), step(query, queue), atol=1e-4, rtol=1e-4)
    (ours,) = torch.autograd.grad(compiled(query, queue), query)
    (theirs,) = torch.autograd.grad(step(query, queue), query)
    torch.testing.assert_close(ours, theirs)


def test_runs_are_bitwise_equal(kernels: str) -> None:
    N, Q = (130, 3000) if kernels == "cpu" else (20, 500)
    query, queue = torch.randn(N, 64, requires_grad=True), unit_queue(Q, 64)

    def run() -> list[Tensor]:
        lse, out = skelops.queue_attention(query, queue, 5.0)
        return [lse, out, torch.autograd.grad((out * out).sum() + lse.sum(), query)[0]]

    threads = torch.get_num_threads()
    first = run()
    torch.set_num_threads(1)
    try:
        again = run()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_second_derivatives() -> None:
    query, queue = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), unit_queue(20, 6).double()
    (gradient,) = torch.autograd.grad(skelops.queue_attention(query, queue).lse.sum(), query, create_graph=True)
    (ours,) = torch.autograd.grad(gradient.square().sum(), query)
    (gradient,) = torch.autograd.grad((query @ queue.T).logsumexp(1).sum(), query, create_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(gradient.square().sum(), query)[0])
    (gradient,) = torch.autograd.grad(skelops.queue_attention(query, queue).out.sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_dtypes_without_a_kernel(dtype: torch.dtype) -> None:
    query, queue = torch.randn(4, 6), unit_queue(20, 6).to(dtype)
    lse, out = skelops.queue_attention(query, queue)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert lse.dtype == out.dtype == expected
    torch.testing.assert_close(lse, (query.to(expected) @ queue.to(expected).T).logsumexp(1))


def test_autocast_does_not_lower() -> None:
    query, queue = torch.randn(20, 12), unit_queue(333, 12)
    for name in ("auto", "reference"):
        with skelops.backend(name):
            plain = skelops.queue_attention(query, queue)
            with torch.autocast(torch.get_default_device().type, torch.bfloat16):
                assert torch.equal(skelops.queue_attention(query, queue).lse, plain.lse)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(3, 4, 5), torch.zeros(9, 5)), ValueError, r"query: expected shape \(N, D\), got \(3, 4, 5\)"),
        (
            (torch.zeros(3, 4), torch.zeros(9, 5)),
            ValueError,
            r"queue: expected shape \(Q, D\) or \(D, Q\) with .*D=4, got \(9, 5\)",
        ),
        ((torch.zeros(3, 0), torch.zeros(9, 0)), ValueError, r"query: expected D of at least 1, got shape \(3, 0\)"),
        ((torch.zeros(3, 4).long(), torch.zeros(9, 4)), TypeError, "query: expected a float tensor, got torch.int64"),
        ((torch.zeros(3, 4), [1.0]), TypeError, "queue: expected a tensor, got list"),
        (
            (torch.zeros(3, 4), torch.zeros(9, 4), 0.0),
            ValueError,
            "scale: expected a finite number above zero, got 0.0",
        ),
        (
            (torch.zeros(3, 4), torch.zeros(9, 4), 1.0, 3),
            TypeError,
            "valid: expected an integer tensor or None, got int",
        ),
        ((torch.zeros(3, 4), torch.zeros(9, 4), 1.0, torch.zeros(1)), TypeError, "valid: .*got torch.float32"),
        (
            (torch.zeros(3, 4), torch.zeros(9, 4), 1.0, torch.zeros(2).long()),
            ValueError,
            r"valid: expected one element, got shape \(2,\)",
        ),
        (
            (torch.zeros(3, 4), torch.zeros(9, 4, device="meta")),
            ValueError,
            "queue: expected device cpu as query, got meta",
        ),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        skelops.queue_attention(*arguments)


def test_a_tile_of_fewer_columns_than_the_queries(kernels: str) -> None:
    """One program of several that share the columns multiplies all of them, whatever a tuned table says."""
    if kernels != "triton":
        pytest.skip("about Triton's tiles")
    tile = {"BM": 16, "BN": 16, "BD": 16, "BK": 32, "num_warps": 4, "num_stages": 2}
    with _triton.choosing({"queue_attention": tile}):
        check(torch.randn(3, 24), unit_queue(50, 24), 1.0)
