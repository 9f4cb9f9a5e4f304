"""Measuring: interleaved medians in one process, the rates that floors are made of, and a CPU's times and memory."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.case import Case, Work
from skelops import _native
from skelops.info import processor

Run = Callable[[], Any]
#: Seconds of one run.
Clock = Callable[[Run], float]


def wall(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def medians(runs: dict[str, Run], seconds: float, clock: Clock = wall, least: int = 7) -> dict[str, float]:
    """Median milliseconds of each, run in turns, so that whatever else the machine does hits all alike.

    The order is drawn anew each round: a run finds in the caches what the one before it left. Every run gets the same
    number of rounds: what ``seconds`` allow, at least ``least`` and at most 200.
    """
    for run in runs.values():
        run()
    start = time.perf_counter()
    for run in runs.values():
        clock(run)
    rounds = int(min(200, max(least, seconds / max(time.perf_counter() - start, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, generator = list(runs), random.Random(0)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            times[name].append(clock(runs[name]))
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


def precision(dtype: torch.dtype) -> str:
    """What matrix products of a dtype are computed in: its name, or "tf32" for float32 where torch is set to that."""
    tf32 = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if tf32 else str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Rates:
    """Measured rates of a machine: bytes per second of a copy, FLOP per second of a matrix product by precision."""

    bandwidth: float
    matmul: dict[str, float]

    def floor_ms(self, work: Work, dtype: torch.dtype) -> float:
        """The time of the bytes at the speed of a copy, or of the FLOP at that of a matrix product."""
        return max(work.bytes / self.bandwidth, work.flop / self.matmul[precision(dtype)]) * 1e3


def copy_bandwidth(megabytes: int, clock: Clock = wall) -> float:
    """Bytes per second that a copy reads and writes, in memory past every cache."""
    source = torch.ones(megabytes * 1024 * 256)
    target = torch.empty_like(source).copy_(source)
    return 2 * 4 * source.numel() / (medians({"copy": lambda: target.copy_(source)}, 1.0, clock)["copy"] / 1e3)


def matmul_rate(dtype: torch.dtype, size: int, clock: Clock = wall) -> float:
    """Floating-point operations per second of a large matrix product by the library."""
    a = torch.randn(size, size).to(dtype)
    return 2 * size**3 / (medians({"mm": lambda: a @ a}, 1.0, clock)["mm"] / 1e3)


def forward(function: Callable[..., Any], inputs: tuple[Any, ...]) -> Run:
    """A forward pass without gradient."""

    def run() -> Any:
        with torch.no_grad():
            return function(*inputs)

    return run


def forward_backward(function: Callable[..., Any], inputs: tuple[Any, ...]) -> Run:
    """A forward and a backward pass with dense upstream gradients, made beforehand and the same for every function."""
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if isinstance(function, nn.Module):
        leaves += function.parameters()

    def outputs() -> list[Tensor]:
        return [y for y in tensors(function(*inputs)) if y.requires_grad]

    torch.manual_seed(0)
    upstream = [torch.empty_like(y).copy_(torch.randn(y.shape, device=y.device)) for y in outputs()]

    def run() -> Any:
        return torch.autograd.grad(outputs(), leaves, upstream, allow_unused=True)

    return run


def passes(case: Case) -> Iterator[tuple[str, Work, Callable[..., Run]]]:
    """The passes of a case: name, work, and what makes the run of a function on inputs."""
    yield case.pass_name, case.forward, forward
    if case.backward:
        yield "forward+backward", case.backward, forward_backward


def functions(case: Case, modes: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """All ways to compute a case, by name; torch.compile in the given modes, for these very shapes."""
    torch._dynamo.reset()
    ways = {"eager": case.eager, "skelops": case.skelops, **case.others}
    for mode in modes if case.compiles else ():
        name = "compile" if mode == "default" else f"compile {mode}"
        ways[name] = torch.compile(case.eager, dynamic=False, mode=mode)
    return ways


@contextmanager
def noted(who: str, notes: dict[str, str]) -> Iterator[None]:
    """Keeps the error of a way that does not work, which is left out then; that of skelops is raised."""
    try:
        yield
    except Exception as error:  # a compiler's errors are of every kind
        if who == "skelops":
            raise
        notes[who] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def copied(value: Any) -> Any:
    """Arguments in memory of their own, with the same strides."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return type(value)(copied(v) for v in value) if isinstance(value, list | tuple) else value


def check(case: Case, inputs: tuple[Any, ...]) -> None:
    """Refuses to time an op that is wrong: outputs and gradients agree with eager's to the precision of the dtype.

    The bounds leave room for eager, which may round sums of a million terms; the tests are the judge of accuracy.

    Raises:
        AssertionError: they do not.
    """
    eps = 2.0**-10 if precision(case.dtype) == "tf32" else torch.finfo(case.dtype).eps
    for name, _, make in passes(case):
        # Copies, as an op may write into its arguments.
        ours, theirs = (tensors(make(way, copied(inputs))()) for way in (case.skelops, case.eager))
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            scale = float(b.abs().max()) if b.numel() else 0.0
            bound = max(1e-6, max(1e-4, 64 * eps) * scale)
            error = float((a.double() - b.double()).abs().max()) if b.numel() else 0.0
            assert error <= bound, f"{name}: result {i} is off eager's by {error:.3g}, at most {bound:.3g} is allowed"


def row(case: Case, name: str, work: Work, rates: Rates, times: dict[str, float], peaks: dict[str, Any]) -> dict:
    """A row of the results: milliseconds by contender, and peak megabytes."""
    others = [other for other in case.others if other in times]
    best = min(others, key=lambda other: times[other], default=None)
    return {
        "op": case.op,
        "case": case.name,
        "device": "cpu",
        "dtype": str(case.dtype).removeprefix("torch."),
        "pass": name,
        "eager_ms": times.get("eager"),
        "compile_ms": times.get("compile"),
        "best_other": best,
        "best_other_ms": times[best] if best else None,
        "skelops_ms": times["skelops"],
        "floor_ms": rates.floor_ms(work, case.dtype),
        "bytes": work.bytes,
        "flop": work.flop,
        "eager_peak_mb": peaks.get("eager"),
        "skelops_peak_mb": peaks["skelops"],
        "headline": case.headline,
    }


def peak_megabytes(run: Run) -> float:
    """How far the memory of tensors rises over one run, in MB, temporaries within ops included.

    Counted by torch's allocator, hence the same every time. What is allocated past it does not count: buffers of
    oneDNN, and the scratch memory of our kernels, which lasts.
    """
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(sizes), default=0) / 2**20


def shares(run: Run, least: float = 0.02) -> dict[str, float]:
    """The share of a run's time that is spent in each op itself, largest first; small ones are added up as "other"."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            run()
    times: dict[str, float] = {}
    for event in profile.key_averages():
        name = event.key.split("::")[-1].removesuffix("_backward") if "skelops" in event.key else event.key
        times[name] = times.get(name, 0.0) + event.self_cpu_time_total
    total = sum(times.values())
    found = {name: time / total for name, time in sorted(times.items(), key=lambda x: -x[1]) if time >= least * total}
    return {**found, "other": 1 - sum(found.values())}


class Cpu:
    """Measures on the CPU."""

    #: Modes of torch.compile that are contenders.
    modes: tuple[str, ...] = ("default",)

    def __init__(self) -> None:
        rates = {precision(dtype): matmul_rate(dtype, 2048) for dtype in (torch.float32, torch.bfloat16)}
        self.rates = Rates(copy_bandwidth(128), rates)

    def meta(self) -> dict[str, Any]:
        return {
            "device": processor(),
            "threads": torch.get_num_threads(),
            "instruction_set": _native.instruction_set(),
        }

    def measure(self, case: Case, seconds: float, modes: tuple[str, ...]) -> list[dict[str, Any]]:
        """The rows of one case: forward, and forward + backward where it has a backward pass."""
        inputs = case.inputs()
        if not case.whole:
            check(case, inputs)
        rows = []
        for name, work, make in passes(case):
            runs: dict[str, Run] = {}
            notes: dict[str, str] = {}
            for who, function in functions(case, modes).items():
                with noted(who, notes):
                    run = make(function, inputs)
                    run()  # compiles what compiles lazily
                    runs[who] = run
            times = medians(runs, seconds)
            peaks: dict[str, Any] = {who: peak_megabytes(runs[who]) for who in ("eager", "skelops") if who in runs}
            rows.append(row(case, name, work, self.rates, times, peaks) | {"notes": notes})
            if case.whole:
                rows[-1]["shares"] = shares(runs["skelops"])
        return rows
