"""What a GPU asks of every op: CUDA graphs, streams, the tensor's own device, no waiting, the same bits every time.

The tests that need no GPU run here on the CPU, with Triton's kernels interpreted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from conftest import captured
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

import skelops
from skelops import _backend, _triton
from skelops._op import REGISTRY

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPES = [torch.float32, torch.bfloat16]
NAMES = {
    "aggregate_per_channel": "aggregate",
    "enqueue_rows": "enqueue_",
    "graph_conv_per_sample": "graph_conv",
    "graph_conv_stats": "graph_conv",
    "mask_pool_channels": "mask_pool",
}
#: Ops whose Triton kernels multiply matrices, which the interpreter does wrongly in bfloat16.
DOTS = (
    "aggregate",
    "bank_contrast",
    "graph_conv",
    "graph_conv_per_sample",
    "graph_conv_stats",
    "hop_attention",
    "info_nce",
    "joint_attention",
    "multi_scale_conv",
    "nt_xent",
    "queue_attention",
    "temporal_conv",
)
Make = Callable[[int, torch.dtype], tuple[Any, ...]]


def _enqueue(queue: Tensor, keys: Tensor, pointer: Tensor) -> tuple[Tensor, ...]:
    skelops.enqueue_(queue, keys, pointer)
    return queue, pointer


def _map(B: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(B, 16, 9, 25).to(dtype).requires_grad_()


def _graph(B: int, dtype: torch.dtype, *batch: int) -> tuple[Any, ...]:
    weight, edges = torch.randn(3, 16, 16) / 4, torch.rand(*batch, 3, 25, 25) / 25
    return _map(B, dtype), weight.to(dtype).requires_grad_(), edges.to(dtype).requires_grad_()


def _channel_graph_inputs(B: int, dtype: torch.dtype) -> tuple[Any, ...]:
    shapes = (B, 48, 9, 25), (B, 3, 4, 25), (B, 3, 4, 25), (3, 16, 4), (3, 16), (1,), (3, 25, 25)
    return tuple((torch.randn(shape) / 4).to(dtype).requires_grad_() for shape in shapes)


def _aggregate_inputs(B: int, dtype: torch.dtype, *sizes: int) -> tuple[Any, ...]:
    return _map(B, dtype), (torch.rand(*sizes, 25, 20) / 25).to(dtype).requires_grad_()


def _hop_inputs(B: int, dtype: torch.dtype) -> tuple[Any, ...]:
    maps = (torch.randn(shape).to(dtype).requires_grad_() for shape in ((B, 48, 9, 25), (B, 16, 9, 5)))
    shapes = (2, 7, 8), (2, 8), (2, 25, 25), (1,)
    parameters = (torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)
    indices = torch.randint(0, 7, (25, 25)), torch.randint(0, 5, (25,))
    return *maps, *parameters, *indices


def _norm_act(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor, seed: Tensor) -> Tensor:
    return skelops.norm_act(x, scale, shift, residual, scale, shift, negative_slope=0.1, dropout=0.5, seed=seed)


def _temporal(B: int, dtype: torch.dtype) -> tuple[Any, ...]:
    weight, bias = (torch.randn(size).to(dtype).requires_grad_() for size in ((20, 16, 5), (20,)))
    scale, shift = (torch.randn(16).requires_grad_() for _ in range(2))
    return _map(B, dtype), weight, bias, scale, shift


def _multi_scale(B: int, dtype: torch.dtype) -> tuple[Any, ...]:
    shapes = (2, 4, 4, 3), (2, 4), (4, 16), (4,)
    parameters = (torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)
    normalisation = (torch.randn(12).requires_grad_() for _ in range(2))
    return torch.randn(B, 12, 9, 25).to(dtype).requires_grad_(), _map(B, dtype), *parameters, *normalisation


def _vectors(rows: int, dtype: torch.dtype, D: int = 16) -> Tensor:
    return normalize(torch.randn(rows, D), dim=1).to(dtype)


def _bank(N: int, dtype: torch.dtype) -> tuple[Any, ...]:
    labels, seed = torch.arange(N) % 3, torch.tensor([5])
    slots = _vectors(200, dtype), torch.arange(200) % 3, torch.rand(200) < 0.9
    return _vectors(N, dtype).requires_grad_(), labels, *slots, seed


#: Every op: the function and its inputs for a batch of B.
CASES: dict[str, tuple[Callable[..., Any], Make]] = {
    "squeeze_pool": (skelops.squeeze_pool, lambda B, dtype: (_map(B, dtype),)),
    "mask_pool": (skelops.mask_pool, lambda B, dtype: (_map(B, dtype), (torch.rand(9, 25) > 0.3).to(dtype))),
    "mask_pool_channels": (
        skelops.mask_pool,
        lambda B, dtype: (_map(B, dtype), torch.rand(B, 16, 9, 25).to(dtype).requires_grad_()),
    ),
    "aggregate": (
        partial(skelops.aggregate, axes="kvw", sum_subsets=False),
        lambda B, dtype: _aggregate_inputs(B, dtype, 3),
    ),
    "aggregate_per_channel": (
        partial(skelops.aggregate, axes="bkcvw", sum_subsets=False),
        lambda B, dtype: _aggregate_inputs(B, dtype, B, 3, 16),
    ),
    "channel_graph_conv": (partial(skelops.channel_graph_conv, stats=True), _channel_graph_inputs),
    "graph_conv": (skelops.graph_conv, lambda B, dtype: _graph(B, dtype)),
    "graph_conv_per_sample": (skelops.graph_conv, lambda B, dtype: _graph(B, dtype, B)),
    "graph_conv_stats": (partial(skelops.graph_conv, stats=True), lambda B, dtype: _graph(B, dtype)),
    "hop_attention": (lambda *inputs: skelops.hop_attention(*inputs, heads=2), _hop_inputs),
    "joint_attention": (
        lambda *inputs: skelops.joint_attention(*inputs, heads=2),
        lambda B, dtype: (
            *(_map(B, dtype) for _ in range(2)),
            torch.rand(2, 25, 25).to(dtype).requires_grad_(),
            torch.rand(2).to(dtype).requires_grad_(),
        ),
    ),
    "norm_act": (
        _norm_act,
        lambda B, dtype: (
            _map(B, dtype),
            torch.rand(16).requires_grad_(),
            torch.rand(16).requires_grad_(),
            _map(B, dtype),
            torch.tensor([5]),
        ),
    ),
    "channel_sums": (skelops.channel_sums, lambda B, dtype: (_map(B, dtype),)),
    "batch_norm_affine": (
        lambda *sums_and_parameters: skelops.batch_norm_affine(*sums_and_parameters[:2], 9, *sums_and_parameters[2:]),
        lambda B, dtype: (
            torch.randn(16, dtype=torch.float64).requires_grad_(),
            (10 + torch.rand(16, dtype=torch.float64)).requires_grad_(),
            torch.randn(16).to(dtype).requires_grad_(),
            torch.randn(16).to(dtype).requires_grad_(),
        ),
    ),
    "multi_scale_conv": (partial(skelops.multi_scale_conv, dilations=(1, 2), stride=2, stats=True), _multi_scale),
    "temporal_conv": (partial(skelops.temporal_conv, stride=2, stats=True), _temporal),
    "temporal_max_pool": (
        partial(skelops.temporal_max_pool, stride=2, stats=True),
        lambda B, dtype: (_map(B, dtype), *(torch.randn(16).requires_grad_() for _ in range(2))),
    ),
    "queue_attention": (
        skelops.queue_attention,
        lambda B, dtype: (_vectors(B, dtype).requires_grad_(), _vectors(200, dtype), 5.0),
    ),
    "bank_contrast": (
        partial(skelops.bank_contrast, positives=9, hard_negatives=17, random_negatives=20),
        _bank,
    ),
    "info_nce": (
        skelops.info_nce,
        lambda B, dtype: (_vectors(B, dtype).requires_grad_(), _vectors(B, dtype), _vectors(200, dtype).T.contiguous()),
    ),
    "nt_xent": (
        lambda tokens: skelops.nt_xent(tokens, [(0, 1), (2, 1)]),
        lambda B, dtype: (torch.randn(3, B, 7, 16).to(dtype).requires_grad_(),),
    ),
    "enqueue_": (
        _enqueue,
        lambda B, dtype: (torch.randn(16, 40).to(dtype), _vectors(B, dtype), torch.full((1,), 38, dtype=torch.int64)),
    ),
    "enqueue_rows": (
        _enqueue,
        lambda B, dtype: (torch.randn(40, 16).to(dtype), _vectors(B, dtype), torch.full((1,), 38, dtype=torch.int64)),
    ),
}

needs_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA device")
on_gpu = [pytest.mark.gpu, needs_gpu]
every_case = pytest.mark.parametrize("case", CASES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(params=["auto", "triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend that serves the case of the test here."""
    name, (case, dtype) = request.param, (request.node.callspec.params[key] for key in ("case", "dtype"))
    op = REGISTRY[NAMES.get(case, case)]
    if name != "auto" and (reason := _backend.unavailable(name, op.package, op.name, DEVICE.type, dtype)):
        pytest.skip(reason)
    if name == "triton" and not GPU and dtype == torch.bfloat16 and case in DOTS:
        pytest.skip("Triton's interpreter multiplies bfloat16 matrices wrongly")
    with skelops.backend(name), torch.device(DEVICE):
        yield name


def step(case: str, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Outputs and gradients of a case; the gradients that come into the backward pass are fixed."""
    result = CASES[case][0](*inputs)
    outputs = [result] if isinstance(result, Tensor) else [y for y in result if y is not None]
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    starts = [y for y in outputs if y.requires_grad]
    if not starts:
        return outputs
    upstream = [torch.full_like(y, 0.5) for y in starts]
    return [y.detach() for y in outputs] + list(torch.autograd.grad(starts, leaves, upstream))


def copies(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in inputs)


def refill(inputs: tuple[Any, ...], values: tuple[Any, ...]) -> None:
    with torch.no_grad():
        for x, value in zip(inputs, values, strict=True):
            if isinstance(x, Tensor):
                x.copy_(value)


def assert_same_bits(results: list[Tensor], expected: list[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(a, b), f"result {i} differs"


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_case
@every_dtype
@pytest.mark.usefixtures("backend")
def test_the_same_bits_every_time(case: str, dtype: torch.dtype) -> None:
    inputs = CASES[case][1](4 if GPU else 2, dtype)
    expected = step(case, copies(inputs))
    assert all(y.isfinite().all() for y in expected)
    for _ in range(5 if GPU else 1):
        assert_same_bits(step(case, copies(inputs)), expected)


@every_case
@every_dtype
@pytest.mark.usefixtures("backend")
def test_empty_batches(case: str, dtype: torch.dtype) -> None:
    inputs = CASES[case][1](0, dtype)
    results = step(case, copies(inputs))
    with skelops.backend("reference"):
        expected = step(case, copies(inputs))
    for a, b in zip(results, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        torch.testing.assert_close(a, b, equal_nan=True)


@every_case
def test_the_reference_needs_no_autograd(case: str) -> None:
    """Where a mode or a compiler calls an op, its gradient runs below autograd."""
    inputs = CASES[case][1](2, torch.float32)
    with skelops.backend("reference"):
        expected = step(case, copies(inputs))
        with FlopCounterMode(display=False):
            results = step(case, copies(inputs))
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", CASES)
@every_dtype
@pytest.mark.usefixtures("backend")
class TestOnGpu:
    """What only a GPU can show."""

    pytestmark = on_gpu

    def test_graph(self, case: str, dtype: torch.dtype) -> None:
        """A captured pass, replayed on other values of its inputs, is the pass on those values."""
        make = CASES[case][1]
        static = make(4, dtype)
        graph, results = captured(lambda: step(case, static))
        for _ in range(3):
            values = make(4, dtype)
            expected = step(case, copies(values))
            refill(static, values)
            graph.replay()
            assert_same_bits(results, expected)

    def test_stream(self, case: str, dtype: torch.dtype) -> None:
        """On a side stream the pass reads what that stream wrote before, however late."""
        make = CASES[case][1]
        late, values = make(4, dtype), make(4, dtype)
        expected = step(case, copies(values))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)
            refill(late, values)
            results = step(case, late)
        torch.cuda.current_stream().wait_stream(side)
        assert_same_bits(results, expected)

    def test_no_waiting(self, case: str, dtype: torch.dtype) -> None:
        inputs = CASES[case][1](4, dtype)
        step(case, copies(inputs))  # compiles
        with waiting_is_an_error():
            step(case, inputs)

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
    def test_second_device(self, case: str, dtype: torch.dtype) -> None:
        inputs = CASES[case][1](4, dtype)
        there = tuple(
            x.detach().to("cuda:1").requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in inputs
        )
        results = step(case, there)
        assert all(y.device.index == 1 for y in results)
        assert_same_bits([y.to(DEVICE) for y in results], step(case, inputs))


def test_launches_enter_the_device_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[Any] = []
    launched: list[Any] = []

    @contextmanager
    def device(value: torch.device) -> Iterator[None]:
        entered.append(value.index)
        yield
        entered.pop()

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **meta: launched.append((grid, args, meta, list(entered)))

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    for index in (0, 1):
        _triton.launch(Kernel(), (2, 3), torch.device("cuda", index), "x", BC=4)
    assert launched == [((2, 3), ("x",), {"BC": 4}, []), ((2, 3), ("x",), {"BC": 4}, [1])]
    _triton.launch(Kernel(), (2, 0), torch.device("cuda", 1), "x", BC=4)
    assert len(launched) == 2


def test_every_op_is_in_the_table() -> None:
    ops = {name for name in REGISTRY if "_backward" not in name}
    assert ops - {"linear"} == {NAMES.get(case, case) for case in CASES}  # which is torch's own on a GPU
