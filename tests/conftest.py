"""What every test shares: poisoned allocations, and the judgement of errors against float64."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._functorch import config as functorch_config

import skelops
from skelops import _backend
from skelops._op import REGISTRY

#: Ops whose Triton kernels multiply matrices.
DOTS = (
    "aggregate",
    "bank_contrast",
    "graph_conv",
    "hop_attention",
    "info_nce",
    "joint_attention",
    "multi_scale_conv",
    "nt_xent",
    "queue_attention",
    "temporal_conv",
)

# Without a GPU, Triton kernels run in its interpreter; it must know before it is imported.
GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"

# This cache of torch.compile does not know the gradients of our ops: it would test those of an earlier version.
functorch_config.enable_autograd_cache = False


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory is NaN: an element that a kernel forgets to write fails a test."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tensors of every test: cpu or cuda")


@pytest.fixture(autouse=True)
def default_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """``pytest --device cuda`` runs the tests of the ops on the GPU."""
    device = request.config.getoption("--device")
    if device != "cpu" and request.node.get_closest_marker("cpu"):
        pytest.skip("about the CPU backend")
    with on(device):
        yield


def on(device: str) -> AbstractContextManager[Any]:
    """Makes tensors on a device by default; for the CPU nothing, as the mode that does it is seen by torch.compile."""
    return nullcontext() if device == "cpu" else torch.device(device)


def why_not(request: pytest.FixtureRequest, backend: str) -> str | None:
    """Why a test of the op that the file is named after cannot run on a backend; None where it can."""
    name = request.node.path.stem.removeprefix("test_")
    op = REGISTRY.get(name) or REGISTRY[f"{name}_"]
    device = "cpu" if backend == "cpu" or not GPU else "cuda"
    dtypes = [value for value in request.node.callspec.params.values() if isinstance(value, torch.dtype)]
    for dtype in dtypes or [torch.float32]:
        if reason := _backend.unavailable(backend, op.package, op.name, device, dtype):
            return reason
        if device == "cpu" and backend == "triton" and dtype == torch.bfloat16 and name in DOTS:
            return "Triton's interpreter multiplies bfloat16 matrices wrongly"
    return None


@pytest.fixture(params=["cpu", "triton", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test on every backend that has kernels of the op: Triton's in the interpreter where there is no GPU."""
    backend = request.param
    if backend == "cpu" and request.config.getoption("--device") != "cpu":
        pytest.skip("about the CPU backend")
    if reason := why_not(request, backend):
        pytest.skip(f"{backend}: {reason}")
    with skelops.backend(backend), on("cuda" if GPU and backend != "cpu" else "cpu"):
        yield backend


def small(*shape: int) -> tuple[int, ...]:
    """The shape of a map (B, C, T, V), smaller where Triton's interpreter runs every program in Python."""
    B, C, T, V = shape
    return (B, min(C, 2), min(T, 7), V) if _backend._forced == "triton" and not GPU else shape


def assert_no_worse(result: Tensor, eager: Tensor, truth: Tensor, what: str = "", factor: float = 2.0) -> None:
    """The result is at most ``factor`` times as far from the float64 truth as eager is at the same precision.

    The floor, for where eager happens to be exact, is a few roundings of a value of the tensor's size.
    """
    assert result.dtype == eager.dtype, f"{what}: {result.dtype} instead of {eager.dtype}"
    assert result.shape == truth.shape, f"{what}: {tuple(result.shape)} instead of {tuple(truth.shape)}"
    if truth.numel() == 0:
        return
    ours, theirs = (result.double() - truth).abs().max(), (eager.double() - truth).abs().max()
    floor = 4 * torch.finfo(result.dtype).eps * truth.abs().max()
    assert ours <= factor * theirs + floor, f"{what}: error {ours:.3g}, eager {theirs:.3g}, floor {floor:.3g}"


def flatten(values: Any) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else [value for value in values if value is not None]


def run_with_gradients(
    function: Callable[..., Any], inputs: Sequence[Tensor | None], differentiable: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients (with a fixed random upstream gradient) of ``function(*inputs)``."""
    leaves = [x.detach().clone() if x is not None else None for x in inputs]
    for i in differentiable:
        leaves[i].requires_grad_()
    outputs = flatten(function(*leaves))
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator, dtype=torch.float64, device="cpu").to(o) for o in outputs]
    wanted = [leaves[i] for i in differentiable]
    differentiable_outputs = [(o, g) for o, g in zip(outputs, upstream, strict=True) if o.requires_grad]
    gradients = torch.autograd.grad(
        [o for o, _ in differentiable_outputs], wanted, [g for _, g in differentiable_outputs], allow_unused=True
    )
    return [o.detach() for o in outputs], [
        torch.zeros_like(w) if g is None else g for w, g in zip(wanted, gradients, strict=True)
    ]


def check_against_eager(
    op: Callable[..., Any],
    eager: Callable[..., Any],
    inputs: Sequence[Tensor | None],
    differentiable: Sequence[int] = (0,),
    factor: float = 2.0,
) -> None:
    """Outputs and every gradient of ``op`` are no worse than those of ``eager``, judged by ``eager`` in float64."""
    double = [x.double() if x is not None and x.is_floating_point() else x for x in inputs]
    ours = run_with_gradients(op, inputs, differentiable)
    theirs = run_with_gradients(eager, inputs, differentiable)
    truth = run_with_gradients(eager, double, differentiable)
    for kind, parts in zip(("output", "gradient"), zip(ours, theirs, truth, strict=True), strict=True):
        for i, (result, low, high) in enumerate(zip(*parts, strict=True)):
            assert_no_worse(result, low, high, f"{kind} {i}", factor)


def captured(step: Callable[[], Any], generator: torch.Generator | None = None) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A step as a CUDA graph, after three of them to warm up, and its results, which every replay writes anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        results = step()
    return graph, results
