"""The benchmarks: cases, the gate before timing, measuring on a GPU (a fake one), budgets, files and tables."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as harness
from benchmarks import (
    bench_channel_sums,
    bench_enqueue,
    bench_info_nce,
    bench_queue_attention,
    bench_squeeze_pool,
    report,
)
from benchmarks.attention import attend
from benchmarks.case import Case, Work
from benchmarks.measure import Cpu, Rates, check, copied, forward_backward, functions, tensors, wall
from benchmarks.measure_cuda import Cuda, Gpu

RESULTS = Path(harness.__file__).parent / "results"
RATES = Rates(1e9, {"float32": 1e9, "tf32": 2e9, "bfloat16": 4e9})


class FakeGpu:
    """A GPU that is the CPU: what it is asked for stands in ``captured`` and ``timed``."""

    device = torch.device("cpu")
    l2_bytes = 64 * 1024
    waiting: Callable[..., bool] = staticmethod(lambda run: False)

    def __init__(self, free: int = 1 << 30) -> None:
        self.free, self.captured = free, list[int]()
        self.event_seconds = self.call_seconds = self.host_seconds = wall

    def describe(self) -> dict[str, Any]:
        return {"device": "fake", "driver": "1.0", "cuda": "13.0"}

    def free_bytes(self) -> int:
        return self.free

    def waits(self, run: Any) -> bool:
        return self.waiting(run)

    def capture(self, runs: list[Any]) -> Any:
        self.captured.append(len(runs))
        return lambda: [run() for run in runs]

    def peak_megabytes(self, run: Any) -> float:
        run()
        return 1.0


def cuda(gpu: Any = None) -> Cuda:
    return Cuda(gpu or FakeGpu(), megabytes=1, matrix=64)


def tiny(**changes: Any) -> Case:
    """channel_sums at a shape of no weight. It has no CUDA kernel: rows are the same where those are built."""
    case = bench_channel_sums.case(2, 3, 8, 5, "contiguous_format", torch.float32)
    return dataclasses.replace(case, **changes)


@pytest.mark.parametrize("op", harness.ops())
def test_cases_for_a_gpu(op: str) -> None:
    """Six shapes or more in each of two dtypes, and inputs on the default device."""
    found = list(importlib.import_module(f"benchmarks.bench_{op}").cases("cuda"))
    names = {
        dtype: {(case.op, case.name) for case in found if case.dtype == dtype}
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert names[torch.float32] == names[torch.bfloat16]
    assert len(names[torch.float32]) >= 6
    assert len(found) == 2 * len(names[torch.float32])
    assert any(case.headline for case in found)
    with torch.device("meta"):
        flat = [x for value in found[0].inputs() for x in (value if isinstance(value, list) else [value])]
    assert {x.device.type for x in flat if isinstance(x, Tensor)} == {"meta"}


def test_copies_rotate_through_more_than_twice_the_cache() -> None:
    copies = cuda().copies(tiny())
    size = 4 * 2 * 3 * 8 * 5
    assert len(copies) == 64  # the most; 137 would be twice the cache
    assert len({copy[0].data_ptr() for copy in copies}) == 64
    assert all(copy[0].requires_grad and copy[0].is_leaf for copy in copies)
    assert len(cuda(FakeGpu(free=8 * 3 * size)).copies(tiny())) == 3
    large = bench_squeeze_pool.case(2, 64, 50, 25, "channels_last", torch.float32)
    copies = cuda().copies(large)
    assert len(copies) == 1
    assert copied(copies[0])[0].is_contiguous(memory_format=torch.channels_last)


def test_rows_of_a_gpu() -> None:
    gpu = FakeGpu()
    rows = cuda(gpu).measure(tiny(), 0.0, ())
    assert [row["pass"] for row in rows] == ["forward", "forward+backward"]
    cpu = Cpu.__new__(Cpu)
    cpu.rates = RATES
    for row, reference in zip(rows, cpu.measure(tiny(), 0.0, ()), strict=True):
        assert row.keys() > reference.keys()
        assert (row["device"], reference["device"]) == ("cuda", "cpu")
        assert row["kernel_ms"].keys() == row["call_ms"].keys() == row["host_us"].keys() == {"eager", "skelops"}
        assert row["skelops_ms"] == row["kernel_ms"]["skelops"] > 0
        assert row["percent_of_floor"] == pytest.approx(100 * row["floor_ms"] / row["skelops_ms"])
        assert (row["events_only"], row["notes"]) == ([], {})
        assert row["rotated_mb"] * 2**20 == 64 * 960
    assert gpu.captured == [64] * 4


def test_waiting_is_found_by_the_debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    gpu = Gpu.__new__(Gpu)

    def fails(message: str) -> Callable[[], None]:
        def run() -> None:
            assert modes[-1] == "error"
            raise RuntimeError(message)

        return run

    assert gpu.waits(fails("called a synchronizing CUDA operation"))
    assert not gpu.waits(lambda: None)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        gpu.waits(fails("illegal memory access"))
    assert modes == ["error", "default"] * 3


def test_what_waits_for_the_gpu_is_timed_by_events() -> None:
    gpu = FakeGpu()
    answers = iter([True, False])  # eager is asked first
    gpu.waiting = lambda run: next(answers)
    (row,) = cuda(gpu).measure(tiny(backward=None), 0.0, ())
    assert row["events_only"] == ["eager"]
    assert row["eager_ms"] > 0


@pytest.mark.parametrize("bench", [cuda, Cpu], ids=["gpu", "cpu"])
def test_a_contender_that_fails_is_noted(bench: Callable[[], Any]) -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no such kernel\nfor this shape")

    (row,) = bench().measure(tiny(backward=None, others={"broken": broken}), 0.0, ())
    with pytest.raises(RuntimeError, match="no such kernel"):
        bench().measure(tiny(backward=None, whole=True, skelops=broken), 0.0, ())
    assert row["notes"] == {"broken": "RuntimeError: no such kernel for this shape"}
    assert row["best_other"] is None


def test_both_gpu_backends_are_contenders_where_an_op_has_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skelops._backend.unavailable", lambda backend, *rest: None)
    assert {"eager", "skelops", "skelops cuda", "skelops triton"} == cuda()._contenders(tiny(), ()).keys()
    monkeypatch.setattr("skelops._backend.unavailable", lambda backend, *rest: "no" if backend == "cuda" else None)
    assert {"eager", "skelops"} == cuda()._contenders(tiny(), ()).keys()


def test_compile_modes_are_contenders() -> None:
    ways = functions(tiny(), ("default", "max-autotune-no-cudagraphs"))
    assert list(ways) == ["eager", "skelops", "compile", "compile max-autotune-no-cudagraphs"]
    assert list(functions(tiny(compiles=False), ("default",))) == ["eager", "skelops"]


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.mean(3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient[..., None].expand(2, 3, 8, 5)


def test_wrong_results_are_not_timed() -> None:
    def mean(x: Tensor) -> Tensor:
        return x.mean(3)

    check(tiny(skelops=mean, eager=mean), tiny().inputs())
    with pytest.raises(AssertionError, match="forward: result 0 is off"):
        check(tiny(skelops=lambda x: x.mean(3) + 1, eager=mean), tiny().inputs())
    with pytest.raises(AssertionError, match="forward: result 0 is off"):
        check(tiny(skelops=lambda x: x.mean(3) * torch.nan, eager=mean), tiny().inputs())
    with pytest.raises(AssertionError, match=r"forward\+backward: result 0 is off"):
        check(tiny(skelops=WrongGradient.apply, eager=mean), tiny().inputs())


def test_what_writes_into_its_arguments_is_checked_on_copies() -> None:
    case = bench_enqueue.case(4, 8, 16)
    inputs = case.inputs()
    check(case, inputs)
    assert inputs[2].item() == 0
    with pytest.raises(AssertionError, match="result 0"):
        check(dataclasses.replace(case, skelops=lambda queue, keys, pointer: (queue, pointer.add_(4))), inputs)


@pytest.mark.parametrize(
    "case",
    [
        bench_info_nce.case(6, 16, 20000),
        bench_info_nce.case(6, 16, 64, groups=3),
        bench_queue_attention.case(6, 16, 20000),
        bench_enqueue.case(4, 8, 16),
    ],
    ids=lambda case: f"{case.op} {case.name}",
)
def test_other_contenders_compute_the_same(case: Case) -> None:
    inputs = case.inputs()
    for function in case.others.values():
        check(dataclasses.replace(case, skelops=function), inputs)


def test_attend_is_differentiable_in_both_outputs() -> None:
    query, rows = torch.randn(5, 16, requires_grad=True), torch.randn(40, 16)
    eager = bench_queue_attention.softmax
    ours, theirs = (forward_backward(f, (query, rows))() for f in (lambda q, r: attend(q, r, 5.0), eager))
    torch.testing.assert_close(tensors(ours), tensors(theirs))


def test_floors() -> None:
    assert RATES.floor_ms(Work(2e6), torch.float32) == 2.0
    assert RATES.floor_ms(Work(2e6, 4e6), torch.float32) == 4.0
    assert RATES.floor_ms(Work(2e6, 4e6), torch.bfloat16) == 2.0
    torch.set_float32_matmul_precision("high")
    try:
        assert RATES.floor_ms(Work(0, 4e6), torch.float32) == 2.0
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_budget_measures_the_most_worthwhile_first() -> None:
    a, b = tiny(name="a"), tiny(name="b", headline=True)
    assert harness.stages([a, b], ("default", "max"), in_budget=False) == [
        [(a, ("default", "max")), (b, ("default", "max"))]
    ]
    assert harness.stages([a, b], ("default", "max"), in_budget=True) == [
        [(b, ()), (a, ())],
        [(b, ("default",))],
        [(b, ("default", "max"))],
        [(a, ("default",))],
        [(a, ("default", "max"))],
    ]


class FakeBench:
    """Rows that name the modes of their measurement; a case named "bad" fails, time goes on by a second a case."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(harness.time, "monotonic", lambda: self.now)

    def measure(self, case: Case, seconds: float, modes: tuple[str, ...]) -> list[dict[str, Any]]:
        self.now += 1.0
        if case.name == "bad":
            raise AssertionError("off eager's")
        row = {"op": case.op, "case": case.name, "dtype": "float32", "pass": "forward", "best_other_ms": None}
        return [{**row, "skelops_ms": 1.0, "floor_ms": 1.0, "eager_ms": 2.0, "compile_ms": 3.0 if modes else None}]


def test_results_are_complete_after_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "results.json"
    results = harness.Results({"device": "fake"}, path)
    bench: Any = FakeBench(monkeypatch)
    for name, rows, failures in (("a", 1, 0), ("bad", 1, 1), ("b", 2, 1)):
        results.measure(bench, tiny(name=name), 1.0, ())
        content = json.loads(path.read_text())
        assert (len(content["rows"]), len(content["failures"])) == (rows, failures)
    results.measure(bench, tiny(name="a"), 1.0, ("default",))
    content = json.loads(path.read_text())
    assert [(row["case"], row["compile_ms"]) for row in content["rows"]] == [("a", 3.0), ("b", None)]
    assert content["failures"] == [
        {"op": "channel_sums", "case": "bad", "dtype": "float32", "error": "AssertionError: off eager's"}
    ]
    assert list(path.parent.iterdir()) == [path]


def test_no_step_begins_that_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    bench: Any = FakeBench(monkeypatch)
    results = harness.Results({}, None)
    step = [(tiny(name=name), ()) for name in "abcde"]
    harness.run(bench, [step[:], step[:1]], results, 1.0, deadline=3.5)
    assert [key[1] for key in results.rows] == ["a", "b", "c"]
    assert bench.now == 4.0  # the second stage knows no duration yet


def test_without_a_gpu_the_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--device", "cuda"])
    with pytest.raises(SystemExit) as error:
        harness.main()
    assert error.value.code == 2
    assert "--device cuda: torch finds no CUDA device here" in capsys.readouterr().err


def test_report_of_a_gpu() -> None:
    bench = cuda()
    rows = bench.measure(tiny(headline=True), 0.0, ())
    text = report.markdown({"meta": harness.meta(bench), "rows": rows})
    header, rule, *lines, blank, source = text.splitlines()
    assert header.count("|") == rule.count("|") == lines[0].count("|") == lines[1].count("|") == 12
    assert f"({rows[0]['percent_of_floor']:.0f}%)" in lines[0]
    assert "| max-autotune |" in header
    assert blank == ""
    assert source.startswith("fake, driver 1.0, CUDA 13.0, Triton ")


def test_report_of_a_cpu() -> None:
    content = json.loads((RESULTS / "cpu_headline.json").read_text())
    text = report.markdown(content)
    assert text.count("\n") == 3 + sum(row["headline"] for row in content["rows"])
    assert "threads" in text


def test_report_of_whole_models() -> None:
    """One row each, with backward pass, and the ops that take most of the time, the largest first."""
    content = json.loads((RESULTS / "cpu_encoders.json").read_text())
    header, _, *lines, _, _ = report.markdown(content).splitlines()
    assert [title.strip() for title in header.split("|")[3:6]] == ["skelops", "floor", "eager"]
    assert header.endswith("| share by op |")
    assert len(lines) == sum(row["pass"] == "forward+backward" for row in content["rows"])
    row = {**content["rows"][0], "pass": "step", "shares": {"a": 0.049, "b": 0.05, "c": 0.6, "other": 0.3}}
    (line,) = report.markdown({**content, "rows": [row]}).splitlines()[2:3]
    assert line.endswith("| c 60%, b 5% |")
