"""enqueue_ against a loop over keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import skelops

DTYPES = [torch.float32, torch.bfloat16]


def by_loop(queue: Tensor, keys: Tensor, pointer: int) -> tuple[Tensor, int]:
    queue = queue.clone()
    for key in keys:
        queue[pointer] = key.to(queue.dtype)
        pointer = (pointer + 1) % len(queue)
    return queue, pointer


@pytest.mark.every_level
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtypes", [(a, b) for a in DTYPES for b in DTYPES], ids=str)
@pytest.mark.parametrize("layout", ["slots", "dims", "gaps"])
def test_ring(dtypes: tuple[torch.dtype, torch.dtype], layout: str) -> None:
    for Q, D, n in [(10, 3, 4), (64, 128, 32), (50, 33, 37), (7, 5, 7), (7, 5, 23), (1, 4, 3), (9, 4, 0)]:
        rows = torch.randn(Q, D).to(dtypes[0])
        queue = {
            "slots": rows.clone(),
            "dims": rows.t().contiguous(),
            "gaps": torch.zeros(2 * Q, 3 * D, dtype=dtypes[0])[::2, ::3].copy_(rows),
        }[layout]
        pointer, start = torch.tensor([Q // 2]), Q // 2
        for _ in range(3):
            # Triton's interpreter cuts where the hardware rounds, so these keys fit every dtype.
            keys = torch.randn(n, 2 * D).bfloat16().to(dtypes[1])
            keys = keys[:, ::2] if layout == "gaps" else keys[:, :D].contiguous()
            skelops.enqueue_(queue, keys, pointer)
            rows, start = by_loop(rows, keys, start)
            assert torch.equal(queue.t() if layout == "dims" else queue, rows)
            assert pointer.tolist() == [start]


def test_many_keys_on_several_threads() -> None:
    queue, keys = torch.zeros(128, 3000), torch.randn(2500, 128)
    pointer = torch.tensor(1234)
    skelops.enqueue_(queue, keys, pointer)
    expected, end = by_loop(torch.zeros(3000, 128), keys, 1234)
    assert torch.equal(queue.t(), expected)
    assert pointer == end


def test_keys_are_rounded_to_the_dtype_of_the_queue() -> None:
    queue, keys = torch.zeros(10, 4, dtype=torch.bfloat16), torch.randn(3, 4)
    skelops.enqueue_(queue, keys, torch.zeros(1, dtype=torch.int64))
    assert torch.equal(queue[:3], keys.bfloat16())


@pytest.mark.usefixtures("kernels")
def test_square_queue_and_pointer_out_of_range() -> None:
    queue, keys, pointer = torch.zeros(4, 4), torch.ones(1, 4), torch.tensor(-2)
    skelops.enqueue_(queue, keys, pointer)
    assert queue[2].tolist() == [1, 1, 1, 1]
    assert pointer == 3


def test_keys_are_taken_without_history() -> None:
    queue, keys = torch.zeros(10, 4), torch.randn(3, 4, requires_grad=True)
    skelops.enqueue_(queue, keys, torch.zeros(1, dtype=torch.int64))
    assert not queue.requires_grad
    assert torch.equal(queue[:3], keys.detach())


@pytest.mark.usefixtures("kernels")
def test_autograd_notices_the_write() -> None:
    queue, query = torch.randn(10, 4), torch.randn(3, 4, requires_grad=True)
    pointer = torch.zeros(1, dtype=torch.int64)
    product = (query @ queue.T).sum()
    skelops.enqueue_(queue, torch.randn(2, 4), pointer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("by_dim", [False, True])
def test_opcheck(by_dim: bool) -> None:
    queue = torch.randn(6, 10).t() if by_dim else torch.randn(10, 6)
    torch.library.opcheck(torch.ops.skelops.enqueue_.default, (queue, torch.randn(4, 6), torch.tensor([8])))


def test_compiles_whole() -> None:
    def step(queue: Tensor, keys: Tensor, pointer: Tensor) -> Tensor:
        skelops.enqueue_(queue, keys, pointer)
        return queue.sum()

    results = []
    for run in (step, torch.compile(step, fullgraph=True)):
        torch.manual_seed(0)
        queue, pointer = torch.randn(6, 10), torch.tensor([8])
        results.append((run(queue, torch.randn(4, 6), pointer), queue, pointer))
    torch.testing.assert_close(*results)


def test_dtypes_without_a_kernel() -> None:
    queue, keys = torch.zeros(10, 4, dtype=torch.float16), torch.randn(3, 4)
    skelops.enqueue_(queue, keys, torch.zeros(1, dtype=torch.int64))
    assert torch.equal(queue[:3], keys.half())


ZERO = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (torch.zeros(9, 5), torch.zeros(3, 4), ZERO),
            ValueError,
            r"queue: expected shape \(Q, D\) or \(D, Q\) with .*D=4",
        ),
        ((torch.zeros(9, 4), torch.zeros(4), ZERO), ValueError, r"keys: expected shape \(n, D\), got \(4,\)"),
        (
            (torch.zeros(9, 4).int(), torch.zeros(3, 4), ZERO),
            TypeError,
            "queue: expected a float tensor, got torch.int32",
        ),
        ((torch.zeros(9, 4), torch.zeros(3, 4), 0), TypeError, "pointer: expected a tensor, got int"),
        ((torch.zeros(9, 4), torch.zeros(3, 4), torch.zeros(1).int()), TypeError, "pointer: .*int64.* got torch.int32"),
        ((torch.zeros(9, 4), torch.zeros(3, 4), torch.zeros(2).long()), ValueError, r"pointer: expected .* got \(2,\)"),
        ((torch.zeros(1, 4).expand(9, 4), torch.zeros(3, 4), ZERO), ValueError, "queue: .*share memory"),
        ((torch.zeros(9, 4, requires_grad=True), torch.zeros(3, 4), ZERO), ValueError, "queue: .*require"),
        (
            (torch.zeros(9, 4), torch.zeros(3, 4, device="meta"), ZERO),
            ValueError,
            "keys: expected device cpu as queue, got meta",
        ),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        skelops.enqueue_(*arguments)
