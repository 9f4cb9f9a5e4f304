"""Measuring on a GPU: kernel times by CUDA-graph replay over rotated inputs, times of calls, and peak memory.

The time of a contender is that of its kernels: calls on several copies of the inputs, together larger than twice the L2
cache, are captured in one CUDA graph, and events around a replay give the time of a call. Beside it stands what a call
costs as it is made: until the GPU is done (``call_ms``), and until Python has control again (``host_us``). A contender
that waits for the GPU within a call cannot be captured; its calls are timed by events, and the row says so
(``events_only``). max-autotune runs without graphs of its own, as every contender is replayed from one.
"""

from __future__ import annotations

import itertools
import subprocess
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

import skelops
from benchmarks.case import Case
from benchmarks.measure import (
    Rates,
    Run,
    check,
    copied,
    copy_bandwidth,
    functions,
    matmul_rate,
    medians,
    noted,
    passes,
    row,
)
from skelops import _backend
from skelops._op import REGISTRY

#: Copies of the inputs that rotate, at most.
MOST_COPIES = 64
#: Calls in one graph, at least: the ends of a replay then weigh little.
LEAST_CALLS = 4
ROUNDS = 5
GPU_BACKENDS = ["cuda", "triton"]


class Gpu:
    """All that measuring asks of CUDA."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.l2_bytes: int = torch.cuda.get_device_properties().L2_cache_size

    def describe(self) -> dict[str, Any]:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            driver = None
        return {"device": torch.cuda.get_device_name(), "driver": driver, "cuda": torch.version.cuda}

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def event_seconds(self, run: Run) -> float:
        """Time on the GPU; what the host needs to enqueue the work hides behind a short sleep of the GPU."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def call_seconds(self, run: Run) -> float:
        """From an idle GPU until it is idle again."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def host_seconds(self, run: Run) -> float:
        """From an idle GPU until the call returns."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def waits(self, run: Run) -> bool:
        """Whether a run makes the host wait for the GPU, which a graph cannot capture."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            return True
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return False

    def capture(self, runs: list[Run]) -> Run:
        """One CUDA graph of all runs, as a run."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            in_turn(runs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            in_turn(runs)
        return graph.replay

    def peak_megabytes(self, run: Run) -> float:
        """How far allocated memory rises over one run."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def size(value: Any) -> int:
    """Bytes of all tensors of some arguments."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(size, value)) if isinstance(value, list | tuple) else 0


def in_turn(runs: list[Run]) -> None:
    for run in runs:
        run()


def on(backend: str, run: Run) -> Run:
    """A run on one backend of skelops; "auto" leaves it as it is."""

    def within() -> Any:
        with skelops.backend(backend):
            return run()

    return run if backend == "auto" else within


class Cuda:
    """Measures on the current CUDA device."""

    modes: tuple[str, ...] = ("default", "max-autotune-no-cudagraphs")

    def __init__(self, gpu: Gpu | None = None, megabytes: int = 2048, matrix: int = 8192) -> None:
        self.gpu = gpu or Gpu()
        before = torch.get_float32_matmul_precision()
        matmul = {}
        with self.gpu.device:
            for name, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bfloat16", torch.bfloat16)):
                torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
                matmul[name] = matmul_rate(dtype, matrix, self.gpu.event_seconds)
            torch.set_float32_matmul_precision(before)
            self.rates = Rates(copy_bandwidth(megabytes, self.gpu.event_seconds), matmul)

    def meta(self) -> dict[str, Any]:
        return {**self.gpu.describe(), "l2_mb": self.gpu.l2_bytes / 2**20}

    def copies(self, case: Case) -> list[tuple[Any, ...]]:
        """Inputs of a case as often as twice the L2 cache holds what a pass touches of them, within an eighth of the
        free memory."""
        # For the inputs alone: within the block, every call of a torch function takes longer.
        with self.gpu.device:
            first = case.inputs()
        touched = min(size(first), int(case.forward.bytes))
        rotated = -(-2 * self.gpu.l2_bytes // max(1, touched))
        fitting = self.gpu.free_bytes() // (8 * max(1, size(first)))
        return [first] + [copied(first) for _ in range(min(rotated, fitting, MOST_COPIES) - 1)]

    def measure(self, case: Case, seconds: float, modes: tuple[str, ...]) -> list[dict[str, Any]]:
        """The rows of one case: forward, and forward + backward where it has a backward pass."""
        copies = self.copies(case)
        check(case, copies[0])
        return [self._row(case, one, copies, seconds, modes) for one in passes(case)]

    def _row(self, case: Case, one: Any, copies: list[Any], seconds: float, modes: tuple[str, ...]) -> dict[str, Any]:
        name, work, make = one
        graphs: dict[str, Run] = {}
        calls: dict[str, Run] = {}
        notes: dict[str, str] = {}
        events_only: list[str] = []
        rotation = max(LEAST_CALLS, len(copies))
        for who, (function, backend) in self._contenders(case, modes).items():
            with noted(who, notes):
                runs = [on(backend, make(function, inputs)) for inputs in copies]
                runs = list(itertools.islice(itertools.cycle(runs), rotation))
                runs[0]()  # compiles what compiles lazily
                if self.gpu.waits(runs[0]):
                    events_only.append(who)
                    graphs[who] = partial(in_turn, runs)
                else:
                    graphs[who] = self.gpu.capture(runs)
                calls[who] = runs[0]
        times = {who: ms / rotation for who, ms in self._medians(graphs, seconds, self.gpu.event_seconds).items()}
        peaks = {who: self.gpu.peak_megabytes(run) for who, run in calls.items()}
        result = row(case, name, work, self.rates, times, peaks)
        return result | {
            "device": "cuda",
            "compile_max_ms": times.get("compile max-autotune-no-cudagraphs"),
            "percent_of_floor": 100 * result["floor_ms"] / result["skelops_ms"],
            "kernel_ms": times,
            "call_ms": self._medians(calls, seconds / 4, self.gpu.call_seconds),
            "host_us": {k: 1e3 * ms for k, ms in self._medians(calls, seconds / 4, self.gpu.host_seconds).items()},
            "peak_mb": peaks,
            "rotated_mb": len(copies) * size(copies[0]) / 2**20,
            "events_only": events_only,
            "notes": notes,
        }

    def _contenders(self, case: Case, modes: tuple[str, ...]) -> dict[str, tuple[Any, str]]:
        """Functions and the backend that they run with; each GPU backend of skelops where an op has both."""
        ways: dict[str, tuple[Any, str]] = {who: (way, "auto") for who, way in functions(case, modes).items()}
        op = REGISTRY.get(case.op)  # ema_update_ has no kernels of its own
        both = op and [b for b in GPU_BACKENDS if not _backend.unavailable(b, op.package, op.name, "cuda", case.dtype)]
        if both == GPU_BACKENDS:
            ways |= {f"skelops {backend}": (case.skelops, backend) for backend in GPU_BACKENDS}
        return ways

    def _medians(self, runs: dict[str, Run], seconds: float, clock: Any) -> dict[str, float]:
        return medians(runs, seconds, clock, ROUNDS)
