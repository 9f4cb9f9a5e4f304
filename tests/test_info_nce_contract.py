"""info_nce as a torch op: the compiler's view, determinism, autocast and refusals."""

from __future__ import annotations

import pytest
import torch
from test_info_nce import eager, make, ours
from torch import Tensor

import skelops

FORMS = [(0, 0, None, "mean"), (2, 1, torch.tensor(5), "none"), (0, 3, torch.tensor([5]), "sum")]


@pytest.mark.parametrize(("P", "E", "valid", "reduction"), FORMS, ids=str)
def test_opcheck(P: int, E: int, valid: Tensor | None, reduction: str) -> None:
    query, key, queue, *extras = make(4, 30, 6, P, E)
    query.requires_grad_()
    flags = (reduction == "none", reduction == "mean")
    arguments = (query, key, queue, *extras, valid, 0.07, True, *flags, True)
    torch.library.opcheck(torch.ops.skelops.info_nce.default, arguments)
    loss, lse, _, log_weights, mean = torch.ops.skelops.info_nce(
        *[x.detach() if isinstance(x, Tensor) else x for x in arguments]
    )
    needs = [True, True, P > 0, E > 0]
    arguments = (loss, lse, query.detach(), key, *extras, log_weights, mean, 0.07, True, *flags, needs)
    torch.library.opcheck(torch.ops.skelops.info_nce_backward.default, arguments)


def test_compiles_whole() -> None:
    query, key, queue, _, negatives = make(20, 300, 12, 0, 1)
    pointer = torch.zeros(1, dtype=torch.int64)

    def step(q: Tensor, k: Tensor, slots: Tensor, place: Tensor) -> Tensor:
        loss = skelops.info_nce(q, k, slots, extra_negatives=negatives).loss
        skelops.enqueue_(slots, k, place)
        return loss

    results = []
    for run in (step, torch.compile(step, fullgraph=True)):
        q, slots, place = query.clone().requires_grad_(), queue.t().contiguous(), pointer.clone()
        loss = run(q, key, slots, place)
        loss.backward()
        results.append((loss, q.grad, slots, place))
    torch.testing.assert_close(*results)


def test_runs_are_bitwise_equal() -> None:
    query, key, queue, *_ = make(130, 3000, 64)
    query.requires_grad_()
    threads = torch.get_num_threads()
    results = []
    for count in (threads, 1):
        torch.set_num_threads(count)
        loss = skelops.info_nce(query, key, queue).loss
        results.append((loss, torch.autograd.grad(loss, query)[0]))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_inputs_are_not_written() -> None:
    inputs = make(20, 300, 12, 1, 1)
    copies = [x.clone() for x in inputs]
    inputs[0].requires_grad_()
    ours(*inputs)[0].sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


def test_double_backward_is_refused() -> None:
    query, key, queue, *_ = make(4, 30, 6)
    (gradient,) = torch.autograd.grad(
        skelops.info_nce(query.requires_grad_(), key, queue).loss, query, create_graph=True
    )
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        gradient.sum().backward()


def test_autocast_does_not_lower() -> None:
    inputs = make(20, 300, 12)[:3]
    for name in ("auto", "reference"):
        with skelops.backend(name):
            plain = skelops.info_nce(*inputs)
            with torch.autocast(torch.get_default_device().type, torch.bfloat16):
                assert torch.equal(skelops.info_nce(*inputs).loss, plain.loss)


def test_dtypes_without_a_kernel() -> None:
    inputs = make(4, 30, 6)[:3]
    torch.testing.assert_close(ours(*[x.half() for x in inputs]), eager(*[x.half() for x in inputs]))
    assert ours(inputs[0], inputs[1], inputs[2].double())[0].dtype == torch.float64


ROWS, QUEUE = torch.zeros(3, 4), torch.zeros(9, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ROWS.long(), ROWS, QUEUE), {}, TypeError, "query: expected a float tensor, got torch.int64"),
        (
            (ROWS[:, :0], ROWS[:, :0], QUEUE[:, :0]),
            {},
            ValueError,
            r"query: expected D of at least 1, got shape \(3, 0\)",
        ),
        ((torch.zeros(()), ROWS, QUEUE), {}, ValueError, r"query: expected shape \(\.\.\., D\), got \(\)"),
        (
            (ROWS, torch.zeros(2, 4), QUEUE),
            {},
            ValueError,
            r"key: expected a shape that broadcasts to \(3, D\) with D=4, got \(2, 4\)",
        ),
        ((ROWS, torch.zeros(3, 1), QUEUE), {}, ValueError, r"key: expected .* got \(3, 1\)"),
        ((ROWS, None, QUEUE), {}, TypeError, "key: expected a float tensor, got NoneType"),
        ((ROWS, ROWS, torch.zeros(9, 5)), {}, ValueError, r"queue: expected shape \(Q, D\) or \(D, Q\)"),
        ((ROWS, ROWS, QUEUE, 0), {}, ValueError, "temperature: expected a finite number above zero, got 0"),
        ((ROWS, ROWS, QUEUE, torch.tensor(1.0)), {}, TypeError, "temperature: expected a number, got Tensor"),
        (
            (ROWS, ROWS, QUEUE),
            {"extra_negatives": ROWS[:2, None]},
            ValueError,
            r"extra_negatives: expected .* \(3, E, D\)",
        ),
        ((ROWS, ROWS, QUEUE), {"extra_positives": ROWS[0]}, ValueError, r"extra_positives: expected .* \(3, P, D\)"),
        (
            (ROWS, ROWS, QUEUE),
            {"reduction": "avg"},
            ValueError,
            "reduction: expected one of 'mean', 'sum', 'none', got 'avg'",
        ),
        ((ROWS, ROWS, QUEUE), {"valid": 3}, TypeError, "valid: expected an integer tensor or None, got int"),
        ((ROWS, ROWS.to("meta"), QUEUE), {}, ValueError, "key: expected device cpu as query, got meta"),
    ],
)
def test_bad_input(arguments: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        skelops.info_nce(*arguments, **options)
