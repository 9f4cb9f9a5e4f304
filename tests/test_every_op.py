"""What holds for every op on the CPU: calls leave nothing behind, and derivatives it does not have are refused."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
from test_gpu import CASES, copies, every_case, step
from torch import Tensor
from torch.autograd import forward_ad

import skelops
from skelops.nn import TemporalConv

pytestmark = pytest.mark.cpu

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class HeapUse(ctypes.Structure):
    """What glibc's ``mallinfo2`` says; ``uordblks`` are the bytes in use."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


@pytest.fixture
def heap() -> Iterator[ctypes._CFuncPtr]:
    try:
        query = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        pytest.skip("needs glibc 2.33")
    query.restype = HeapUse
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the heaps of other threads are not counted
    yield query
    torch.set_num_threads(threads)


@every_case
def test_calls_leave_nothing_behind(case: str, heap: ctypes._CFuncPtr) -> None:
    """A few bytes per call are more than their sum: they keep the heap from giving freed maps back."""
    inputs = copies(CASES[case][1](2, torch.float32))
    calls, used = 100, []
    for _ in range(3):  # what is made once is made at first
        before = heap().uordblks
        for _ in range(calls):
            step(case, inputs)
        used.append((heap().uordblks - before) / calls)
    assert min(used) < 16, f"bytes kept per call: {used}"


@every_case
def test_forward_mode_is_refused(case: str) -> None:
    function, make = CASES[case]
    inputs = make(2, torch.float32)
    if not any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        pytest.skip("it has no gradient")
    with forward_ad.dual_level():
        dual = [
            forward_ad.make_dual(x.detach(), torch.ones_like(x)) if isinstance(x, Tensor) and x.requires_grad else x
            for x in inputs
        ]
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
            function(*dual)


def test_jvp_is_refused() -> None:
    x, A = torch.randn(1, 4, 3, 5), torch.randn(2, 5, 5)
    with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        torch.func.jvp(lambda x: skelops.aggregate(x, A, axes="kvw", sum_subsets=True), (x,), (x,))


def test_shapes_on_the_meta_device() -> None:
    conv = TemporalConv(4, 8, 3).to("meta")
    y = conv(torch.empty(2, 4, 6, 5, device="meta"))
    y.sum().backward()
    assert y.shape == (2, 8, 6, 5)
    assert conv.weight.grad.shape == conv.weight.shape
