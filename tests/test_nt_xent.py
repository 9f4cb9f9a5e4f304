"""nt_xent against eager PyTorch and against the oracles that hold for it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import check_against_eager
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import skelops

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CROSSED = [(0, 1), (0, 3), (2, 1), (2, 3)]
# S, N, P, D, pairs
SHAPES = [
    (2, 1, 1, 1, [(0, 1)]),
    (2, 3, 2, 5, [(1, 0)]),
    (4, 3, 25, 33, CROSSED),
    (4, 2, 13, 64, CROSSED),
    (3, 2, 17, 40, [(2, 0), (0, 1), (0, 2)]),
    (2, 1, 50, 130, [(0, 1)]),
]


def eager(tokens: Tensor, pairs: list[tuple[int, int]], temperature: float = 0.07) -> Tensor:
    """By pairs, as the released code: a boolean mask takes the diagonal out of the logits, then cross-entropy."""
    x, losses = tokens.to(torch.promote_types(tokens.dtype, torch.float32)), []
    for a, b in pairs:
        rows = normalize(torch.cat([x[a], x[b]], 1), dim=-1)
        N, R = rows.shape[:2]
        others = ~torch.eye(R, dtype=torch.bool).expand(N, R, R)
        logits = (rows @ rows.mT)[others].view(N * R, R - 1) / temperature
        row = torch.arange(R)
        partner = (row + R // 2) % R
        losses.append(cross_entropy(logits, (partner - (partner > row).long()).repeat(N)))
    return torch.stack(losses)


def check(tokens: Tensor, pairs: list[tuple[int, int]], **options: Any) -> None:
    check_against_eager(
        partial(skelops.nt_xent, pairs=pairs, **options), partial(eager, pairs=pairs, **options), [tokens]
    )


@pytest.mark.every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("kernels")
def test_matches_eager(shape: tuple[Any, ...], dtype: torch.dtype) -> None:
    *sizes, pairs = shape
    for temperature in (0.07, 1.5):
        check((3 * torch.randn(sizes)).to(dtype), pairs, temperature=temperature)
    tokens = torch.randn(sizes).to(dtype)
    assert skelops.nt_xent(tokens, pairs).dtype == torch.float32


@pytest.mark.every_level
@pytest.mark.parametrize("shape", [(2, 1, 150, 270), (3, 1, 100, 40), (4, 37, 25, 256)], ids=str)
def test_matches_eager_at_larger_shapes(shape: tuple[int, ...]) -> None:
    """Several blocks of tokens of one clip, several pieces of a sum, and many clips."""
    check(torch.randn(shape), [(0, 1), (shape[0] - 1, 0)])


@pytest.mark.usefixtures("kernels")
def test_wide_tokens_of_a_whole_batch() -> None:
    check(torch.randn(2, 1, 20, 600), [(0, 1)])


@pytest.mark.usefixtures("kernels")
def test_identical_views_of_orthonormal_tokens() -> None:
    for P, temperature in ((4, 0.5), (25, 0.07), (13, 0.2)):
        tokens = (5 * torch.eye(P, 32)).expand(2, 3, P, 32)
        expected = math.log(1 + (2 * P - 2) * math.exp(-1 / temperature))
        torch.testing.assert_close(skelops.nt_xent(tokens, [(0, 1)], temperature), torch.tensor([expected]))


@pytest.mark.usefixtures("kernels")
def test_vanishing_loss_keeps_its_digits() -> None:
    tokens = torch.randn(1, 2, 12, 64).expand(2, -1, -1, -1) + 0.02 * torch.randn(2, 2, 12, 64)
    assert (eager(tokens, [(0, 1)], 0.05) < 1e-4).all()
    check(tokens, [(0, 1)], temperature=0.05)


@pytest.mark.usefixtures("kernels")
def test_low_temperature() -> None:
    """Logits whose exponentials overflow, in some sets more than in others."""
    for temperature in (1e-2, 1e-3):
        check(torch.randn(4, 2, 9, 6), CROSSED, temperature=temperature)


@pytest.mark.every_level
@pytest.mark.usefixtures("kernels")
def test_zero_tokens() -> None:
    tokens = torch.zeros(2, 3, 5, 16, requires_grad=True)
    loss = skelops.nt_xent(tokens, [(0, 1)])
    torch.testing.assert_close(loss, torch.tensor([math.log(9)]))
    assert (torch.autograd.grad(loss.sum(), tokens)[0] == 0).all()
    mixed = torch.randn(2, 3, 5, 16)
    mixed[0, :, 2] = 0
    check(mixed, [(0, 1)])
    mixed.requires_grad_()
    assert torch.autograd.grad(skelops.nt_xent(mixed, [(0, 1)]).sum(), mixed)[0].isfinite().all()


@pytest.mark.usefixtures("kernels")
def test_the_order_of_a_pair_and_of_the_tokens_does_not_matter() -> None:
    tokens = torch.randn(2, 3, 10, 16)
    loss = skelops.nt_xent(tokens, [(0, 1), (1, 0), (0, 1)])
    torch.testing.assert_close(loss, loss[:1].expand(3))
    torch.testing.assert_close(skelops.nt_xent(tokens[:, :, torch.randperm(10)], [(0, 1)]), loss[:1])


@pytest.mark.usefixtures("kernels")
def test_sets_without_a_pair_take_no_part() -> None:
    tokens = torch.randn(5, 2, 6, 16)
    expected = eager(tokens, [(3, 1)])
    tokens[[0, 2, 4]] = torch.nan
    tokens.requires_grad_()
    loss = skelops.nt_xent(tokens, [(3, 1)])
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss.sum(), tokens)
    assert (gradient[[0, 2, 4]] == 0).all()
    assert (gradient[[1, 3]] != 0).all()
    assert gradient.isfinite().all()


@pytest.mark.every_level
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.usefixtures("kernels")
def test_what_is_not_finite_stays_with_its_set_and_its_clip(value: float) -> None:
    tokens = torch.randn(4, 2, 6, 16)
    tokens[3, 1, 2, 5] = value
    tokens.requires_grad_()
    loss = skelops.nt_xent(tokens, CROSSED)
    assert torch.equal(loss.isnan(), torch.tensor([False, True, False, True]))
    (gradient,) = torch.autograd.grad(loss.sum(), tokens)
    assert gradient[:, 0].isfinite().all()
    assert gradient[3, 1].isnan().all()


@pytest.mark.parametrize("view", ["by clip", "columns", "slice", "expanded"])
@pytest.mark.usefixtures("kernels")
def test_strides(view: str) -> None:
    x = torch.randn(3, 4, 7, 20)
    tokens = {
        "by clip": lambda: x.transpose(0, 1).contiguous().transpose(0, 1),
        "columns": lambda: torch.randn(3, 4, 7, 40)[..., ::2],
        "slice": lambda: torch.randn(3, 4, 7, 33)[..., 5:25],
        "expanded": lambda: x[:, :1].expand(3, 4, 7, 20),
    }[view]()
    pairs = [(0, 1), (1, 2)]
    leaf, copy = tokens.detach().requires_grad_(), tokens.contiguous().requires_grad_()
    losses = [skelops.nt_xent(leaf, pairs), skelops.nt_xent(copy, pairs)]
    assert torch.equal(*losses)
    # sum: an upstream gradient of stride 0
    gradients = [torch.autograd.grad(loss.sum(), y)[0] for loss, y in zip(losses, (leaf, copy), strict=True)]
    assert torch.equal(*gradients)
    expected = eager(copy, pairs)
    torch.testing.assert_close(losses[0], expected)
    torch.testing.assert_close(gradients[0], torch.autograd.grad(expected.sum(), copy)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["sets", "clips", "tokens"])
@pytest.mark.parametrize("dtype", [torch.float16], ids=str)
@pytest.mark.usefixtures("kernels")
def test_addresses_past_32_bits(axis: int, dtype: torch.dtype) -> None:
    # Zeros that are never touched take no memory; the last set, clip or token begins at element 2**31.
    memory = torch.from_numpy(np.zeros(2**31 + 200, np.float16)).to(torch.get_default_device())
    strides = [60, 20]
    strides.insert(axis, 2**30)
    values = torch.randn(3, 3, 3, 20).to(dtype)
    tokens = memory.as_strided((3, 3, 3, 20), (*strides, 1)).copy_(values).requires_grad_()
    loss, expected = (skelops.nt_xent(x, [(0, 2), (1, 0)]) for x in (tokens, values.requires_grad_()))
    assert torch.equal(loss, expected)
    assert torch.equal(torch.autograd.grad(loss.sum(), tokens)[0], torch.autograd.grad(expected.sum(), values)[0])


@pytest.mark.usefixtures("kernels")
def test_pairs_are_weighted_by_their_gradients() -> None:
    tokens, weights = torch.randn(4, 2, 9, 16, requires_grad=True), torch.tensor([1.0, -2.0, 0.0, 0.5])
    ours, theirs = (torch.autograd.grad(f(tokens, CROSSED) @ weights, tokens)[0] for f in (skelops.nt_xent, eager))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("kernels")
def test_no_clips() -> None:
    tokens = torch.randn(2, 0, 5, 8, requires_grad=True)
    loss = skelops.nt_xent(tokens, [(0, 1), (1, 0)])
    assert loss.shape == (2,)
    assert loss.isnan().all()
    assert torch.autograd.grad(loss.sum(), tokens)[0].shape == tokens.shape


def test_gradients_of_the_reference() -> None:
    tokens = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    for pairs in ([(0, 1)], [(0, 1), (2, 1), (1, 0)]):
        torch.autograd.gradcheck(partial(skelops.nt_xent, pairs=pairs, temperature=0.5), tokens)


def test_opcheck() -> None:
    tokens = torch.randn(3, 2, 4, 5, requires_grad=True)
    pairs = [0, 1, 2, 1]
    torch.library.opcheck(torch.ops.skelops.nt_xent.default, (tokens, pairs, 0.1))
    loss, most, log_total = torch.ops.skelops.nt_xent(tokens.detach(), pairs, 0.1)
    arguments = (loss, tokens.detach(), most, log_total, pairs, 0.1)
    torch.library.opcheck(torch.ops.skelops.nt_xent_backward.default, arguments)


def test_compiles_whole() -> None:
    compiled = torch.compile(partial(skelops.nt_xent, pairs=CROSSED), fullgraph=True, dynamic=True)
    for N, P in ((2, 7), (3, 9)):
        tokens = torch.randn(4, N, P, 16, requires_grad=True)
        loss, expected = compiled(tokens), skelops.nt_xent(tokens, CROSSED)
        torch.testing.assert_close(loss, expected)
        gradients = (torch.autograd.grad(y.square().sum(), tokens)[0] for y in (loss, expected))
        torch.testing.assert_close(*gradients)


@pytest.mark.cpu
@pytest.mark.parametrize("shape", [(2, 1, 120, 200), (4, 5, 25, 64)], ids=str)
def test_bits_do_not_depend_on_the_threads(shape: tuple[int, ...]) -> None:
    tokens = torch.randn(shape, requires_grad=True)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            loss = skelops.nt_xent(tokens, [(0, 1), (1, 0)])
            results.append((loss, torch.autograd.grad(loss.sum(), tokens)[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_autocast_does_not_lower() -> None:
    tokens = torch.randn(2, 3, 7, 20, requires_grad=True)
    for name in ("auto", "reference"):
        with skelops.backend(name):
            plain = skelops.nt_xent(tokens, [(0, 1)])
            with torch.autocast(torch.get_default_device().type, torch.bfloat16):
                lowered = skelops.nt_xent(tokens, [(0, 1)])
            assert torch.equal(lowered, plain)
            assert torch.equal(*(torch.autograd.grad(y.sum(), tokens)[0] for y in (lowered, plain)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_dtypes_without_a_kernel(dtype: torch.dtype) -> None:
    tokens = torch.randn(2, 3, 7, 20).to(dtype).requires_grad_()
    loss = skelops.nt_xent(tokens, [(0, 1)])
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(loss, eager(tokens, [(0, 1)]))
    assert torch.autograd.grad(loss.sum(), tokens)[0].dtype == dtype


def test_double_backward_is_refused() -> None:
    tokens = torch.randn(2, 1, 3, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(skelops.nt_xent(tokens, [(0, 1)]).sum(), tokens, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        gradient.sum().backward()


TOKENS = torch.zeros(3, 2, 5, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((TOKENS[0], [(0, 1)]), ValueError, r"tokens: expected shape \(S, N, P, D\), got \(2, 5, 4\)"),
        ((TOKENS.long(), [(0, 1)]), TypeError, "tokens: expected a float tensor, got torch.int64"),
        ((None, [(0, 1)]), TypeError, "tokens: expected a tensor, got NoneType"),
        ((TOKENS[:, :, :0], [(0, 1)]), ValueError, "tokens: expected at least one in a set, got P=0"),
        ((TOKENS[..., :0], [(0, 1)]), ValueError, r"tokens: expected D of at least 1, got shape \(3, 2, 5, 0\)"),
        ((TOKENS, []), ValueError, "pairs: expected at least one, got none"),
        ((TOKENS, [(0.5, 1)]), ValueError, r"pairs: expected .* got \(0.5, 1\)"),
        (
            (TOKENS, [(0, 3)]),
            ValueError,
            r"pairs: expected pairs of different sets among the 3 of tokens, got \(0, 3\)",
        ),
        ((TOKENS, [(-1, 0)]), ValueError, r"pairs: expected .* got \(-1, 0\)"),
        ((TOKENS, [(0, 1), (2, 2)]), ValueError, r"pairs: expected .* got \(2, 2\)"),
        ((TOKENS, [(0, 1, 2)]), ValueError, r"pairs: expected .* got \(0, 1, 2\)"),
        ((TOKENS, [0, 1]), ValueError, "pairs: expected .* got 0"),
        ((TOKENS, [(0, 1)], 0), ValueError, "temperature: expected a finite number above zero, got 0"),
        ((TOKENS, [(0, 1)], "a"), TypeError, "temperature: expected a number, got str"),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        skelops.nt_xent(*arguments)
