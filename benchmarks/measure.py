"""Measuring: interleaved medians in one process, peak memory, and the rates that floors are made of."""

from __future__ import annotations

import ctypes
import gc
import random
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Work

Run = Callable[[], Any]


def medians(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    """Median milliseconds of each, run in turns, so that whatever else the machine does hits all alike.

    The order is drawn anew each round: a run finds in the caches what the one before it left. Every run gets the same
    number of rounds: what ``seconds`` allow, at least 7 and at most 200.
    """
    for run in runs.values():
        run()
    start = time.perf_counter()
    for run in runs.values():
        run()
    rounds = int(min(200, max(7, seconds / max(time.perf_counter() - start, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, generator = list(runs), random.Random(0)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


def peak_megabytes(run: Run) -> float | None:
    """How far the process's resident memory rises over one run, in MB; None where Linux's /proc is missing."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    run()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back, so that reusing it counts
    try:
        reset.write_text("5")
    except OSError:
        return None
    fields = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status.read_text(), re.M))
    before = int(fields["VmRSS"])
    run()
    after = int(dict(re.findall(r"^(VmHWM):\s+(\d+) kB", status.read_text(), re.M))["VmHWM"])
    return max(0, after - before) / 1024


def copy_bandwidth() -> float:
    """Bytes per second that a copy reads and writes, in memory past every cache."""
    source = torch.ones(32 * 1024 * 1024)
    target = torch.empty_like(source).copy_(source)
    return 2 * 4 * source.numel() / (medians({"copy": lambda: target.copy_(source)}, 1.0)["copy"] / 1e3)


def matmul_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product by the library."""
    a = torch.randn(2048, 2048).to(dtype)
    return 2 * 2048**3 / (medians({"mm": lambda: a @ a}, 1.0)["mm"] / 1e3)


class Machine:
    """The measured rates of this machine, and the floor that they set."""

    def __init__(self) -> None:
        self.bandwidth = copy_bandwidth()
        self.matmul = {dtype: matmul_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}

    def floor_ms(self, work: Work, dtype: torch.dtype) -> float:
        """The time of the bytes at the speed of a copy, or of the FLOP at that of a matrix product."""
        return max(work.bytes / self.bandwidth, work.flop / self.matmul[dtype]) * 1e3


def forward(function: Callable[..., Any], inputs: tuple[Any, ...]) -> Run:
    """A forward pass without gradient."""

    def run() -> Any:
        with torch.no_grad():
            return function(*inputs)

    return run


def forward_backward(function: Callable[..., Any], inputs: tuple[Any, ...]) -> Run:
    """A forward and a backward pass with dense upstream gradients, made beforehand."""
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]

    def outputs() -> list[Tensor]:
        result = function(*inputs)
        return [y for y in ([result] if isinstance(result, Tensor) else result) if y.requires_grad]

    upstream = [torch.randn_like(y) for y in outputs()]

    def run() -> Any:
        return torch.autograd.grad(outputs(), leaves, upstream)

    return run


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for these very shapes."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def check(case: Case, inputs: tuple[Any, ...]) -> None:
    """Refuses to time an op that is wrong: its outputs agree with eager's to the precision of the dtype.

    Raises:
        AssertionError: they do not.
    """
    eps = torch.finfo(case.dtype).eps
    with torch.no_grad():
        ours, theirs = case.skelops(*inputs), case.eager(*inputs)
    for a, b in zip(*([y] if isinstance(y, Tensor) else y for y in (ours, theirs)), strict=True):
        scale = float(b.abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=max(1e-6, 64 * eps * scale))


def measure(case: Case, machine: Machine, seconds: float, with_compile: bool) -> list[dict[str, Any]]:
    """The rows of one case: forward, and forward + backward where it has a backward pass."""
    rows = []
    inputs = case.inputs()
    check(case, inputs)
    for name, work, make in (("forward", case.forward, forward), ("forward+backward", case.backward, forward_backward)):
        if work is None:
            continue
        runs = {"eager": make(case.eager, inputs), "skelops": make(case.skelops, inputs)}
        runs |= {other: make(function, inputs) for other, function in case.others.items()}
        if with_compile and case.compiles:
            runs["compile"] = make(compiled(case.eager), inputs)
        times = medians(runs, seconds)
        best = min(case.others, key=lambda other: times[other], default=None)
        rows.append(
            {
                "op": case.op,
                "case": case.name,
                "device": "cpu",
                "dtype": str(case.dtype).removeprefix("torch."),
                "pass": name,
                "eager_ms": times["eager"],
                "compile_ms": times.get("compile"),
                "best_other": best,
                "best_other_ms": times[best] if best else None,
                "skelops_ms": times["skelops"],
                "floor_ms": machine.floor_ms(work, case.dtype),
                "bytes": work.bytes,
                "flop": work.flop,
                "eager_peak_mb": peak_megabytes(runs["eager"]),
                "skelops_peak_mb": peak_megabytes(runs["skelops"]),
                "headline": case.headline,
            }
        )
    return rows
