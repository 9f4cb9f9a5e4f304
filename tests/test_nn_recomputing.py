"""recompute: gradients that do not change, and what is kept, computed again and freed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from skelops.methods.encoders import AGCN, CTRGCN, DSTA, Hyperformer, SCDEncoder
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.measure import peak_megabytes
from skelops.nn import recompute
from skelops.nn.recomputing import recomputed

FRAMES = 24
ENCODERS: list[Callable[[], nn.Module]] = [
    lambda: AGCN("nw_ucla", bodies=1, width=8),
    lambda: CTRGCN("nw_ucla", bodies=1, width=8),
    lambda: DSTA("nw_ucla", width=8),
    lambda: Hyperformer("nw_ucla", bodies=1, heads=2, head_dim=12),
    lambda: SCDEncoder("nw_ucla", bodies=1, frames=FRAMES, width=8, hidden_dim=16, heads=2, dropout=0.0),
]
every_encoder = pytest.mark.parametrize("make", ENCODERS, ids=["AGCN", "CTRGCN", "DSTA", "Hyperformer", "SCDEncoder"])


class Square:
    """x squared, how often it was computed, and the memory of what came out."""

    def __init__(self) -> None:
        self.calls = 0
        self.memory: list[weakref.ref] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = x * x
        self.memory.append(weakref.ref(y.untyped_storage()))
        return y

    @property
    def alive(self) -> list[bool]:
        gc.collect()
        return [memory() is not None for memory in self.memory]


def step(encoder: nn.Module, clips: Tensor, autocast: bool) -> list[Tensor | None]:
    with torch.autocast(torch.get_default_device().type, torch.bfloat16) if autocast else nullcontext():
        y = encoder(clips)
    return [y, *torch.autograd.grad(y, list(encoder.parameters()), torch.ones_like(y), allow_unused=True)]


@every_encoder
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_gradients_are_the_same_to_the_bit(make: Callable[[], nn.Module], autocast: bool) -> None:
    encoder, clips = make(), torch.randn(2, 3, FRAMES, 20, 1)
    results = []
    for encoder.recomputing in (True, False):
        results.append(step(encoder, clips, autocast))
    for one, other in zip(*results, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.cpu
@every_encoder
def test_encoders_take_less_memory(make: Callable[[], nn.Module]) -> None:
    encoder, clips = make(), torch.randn(2, 3, FRAMES, 20, 1)
    peaks = []
    for encoder.recomputing in (True, False):
        peaks.append(peak_megabytes(lambda: step(encoder, clips, False)))
    assert peaks[0] < 0.95 * peaks[1]


def test_what_is_recomputed_is_not_kept() -> None:
    square, x = Square(), torch.randn(3, 4, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        first, second = recomputed(square, x).chunk(2)
        return first.exp().sum() * second.cos().sum() + first.sin().sum()

    for times in (1, 2):
        y = recompute(block, x)
        assert square.calls == 2 * times - 1
        assert square.alive[-1] is False
        (grad,) = torch.autograd.grad(y, x)
        assert square.calls == 2 * times, "one call serves all that ask"
        assert not any(square.alive)
    torch.testing.assert_close(grad, torch.autograd.grad(block(x), x)[0], rtol=0, atol=0)


def test_a_second_backward_pass_computes_once_more() -> None:
    square, x = Square(), torch.randn(5, 1, requires_grad=True)
    y = recompute(lambda x: recomputed(square, x).cos().sum(), x)
    first, second = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert square.calls == 3


@pytest.mark.parametrize("written", [0, 1, 2], ids=["input", "vector", "matrix"])
def test_what_was_written_to_is_refused(written: int) -> None:
    """As autograd refuses it where it keeps what it needs itself."""
    inputs = torch.randn(5, 1, requires_grad=True), torch.randn(1), torch.randn(5, 1)
    y = recompute(lambda x, a, b: (recomputed(Square(), x) * a * b).cos().sum(), *inputs)
    with torch.no_grad():
        inputs[written].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, inputs[0])


def test_what_the_block_itself_writes_to_is_kept() -> None:
    x = torch.randn(5, 1, requires_grad=True)
    blocks = (
        lambda x: (recomputed(Square(), x) * x).add_(1).cos().sum(),
        lambda x: recomputed(Square(), x).add_(1).cos().sum(),
    )
    for block in blocks:
        expected = torch.autograd.grad(block(x), x)
        torch.testing.assert_close(torch.autograd.grad(recompute(block, x), x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("backward", [False, True])
def test_a_graph_is_freed_whether_or_not_its_backward_pass_runs(backward: bool) -> None:
    square, x, kept = Square(), torch.randn(5, 1, requires_grad=True), []

    def block(x: Tensor) -> Tensor:
        y = recomputed(square, x).tanh()  # an op that saves its own output
        kept.append(weakref.ref(y.untyped_storage()))
        return y.sum()

    y = recompute(block, x)
    if backward:
        y.backward()
    del y
    assert not any(square.alive)
    assert kept[0]() is None


def test_sparse_tensors_are_kept() -> None:
    square, x = Square(), torch.randn(5, 2, requires_grad=True)
    matrix = torch.eye(5).to_sparse()
    recompute(lambda x: torch.sparse.mm(matrix, recomputed(square, x)).cos().sum(), x).backward()
    torch.testing.assert_close(x.grad, -2 * x.detach() * x.detach().square().sin())


def test_the_output_is_kept() -> None:
    square, x = Square(), torch.randn(5, 1, requires_grad=True)
    y = recompute(lambda x: recomputed(square, x), x)
    y.cos().sum().backward()
    assert square.calls == 1


def test_outputs_in_a_tuple_are_kept() -> None:
    squares, x = [Square(), Square(), Square()], torch.randn(5, 1, requires_grad=True)

    def block(x: Tensor) -> tuple[Tensor, Tensor]:
        first, second, third = (recomputed(square, x) for square in squares)
        return first, second * third

    first, product = recompute(block, x)
    assert squares[2].alive == [False]
    (first.cos().sum() + product.sum()).backward()
    assert [square.calls for square in squares] == [1, 2, 2]


def test_without_gradients_nothing_is_done() -> None:
    square, x = Square(), torch.randn(5, 1)
    with torch.no_grad():
        recompute(lambda x: recomputed(square, x) + 1, x)
    assert square.calls == 1
    assert square.alive == [False]


def test_outside_of_a_block_it_is_a_call() -> None:
    square, x = Square(), torch.randn(5, 1, requires_grad=True)
    y = recomputed(square, x)
    y.cos().sum().backward()
    assert square.calls == 1


def test_an_error_leaves_nothing_behind() -> None:
    square, x = Square(), torch.randn(5, 1, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        recomputed(square, x).tanh()
        raise RuntimeError("a block that fails")

    with pytest.raises(RuntimeError, match="a block that fails"):
        recompute(block, x)
    assert square.alive == [False]
    recomputed(square, x).cos().sum().backward()
    assert square.calls == 2


def test_without_such_a_map_other_hooks_see_all() -> None:
    seen: list[Tensor] = []

    def see(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    x = torch.randn(5, 1, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(see, lambda x: x):
        recompute(torch.cos, x)
    assert len(seen) == 1


def test_within_a_checkpoint() -> None:
    square, x = Square(), torch.randn(5, 1, dtype=torch.float64, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        return recompute(lambda x: recomputed(square, x).cos().sum(), x.exp())

    y = checkpoint(block, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y, x), torch.autograd.grad((2 * x).exp().cos().sum(), x))
