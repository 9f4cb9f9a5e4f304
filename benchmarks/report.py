"""The README's table from a file of results: ``python -m benchmarks.report benchmarks/results/FILE.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value >= 10 else f"{value:.3g} ms"


def against(key: str) -> Callable[[Row], str]:
    """A time, and in brackets how many times faster skelops is."""

    def cell(row: Row) -> str:
        return f"{milliseconds(row[key])} ({row[key] / row['skelops_ms']:.1f}x)" if row.get(key) else "-"

    return cell


def best_other(row: Row) -> str:
    return f"{row['best_other']}: {against('best_other_ms')(row)}" if row["best_other"] else "-"


def memory(row: Row) -> str:
    if row["eager_peak_mb"] is None or row["skelops_peak_mb"] is None:
        return "-"
    return f"{row['skelops_peak_mb']:.0f} : {row['eager_peak_mb']:.0f} MB eager"


def call(row: Row) -> str:
    """Milliseconds of a call until the GPU is done, of skelops and of eager."""
    eager = f" : {milliseconds(row['call_ms']['eager'])} eager" if "eager" in row["call_ms"] else ""
    return milliseconds(row["call_ms"]["skelops"]) + eager


def shares(row: Row) -> str:
    """The ops that take most of the time of skelops."""
    largest = sorted(row["shares"].items(), key=lambda item: -item[1])
    return ", ".join(f"{op} {share:.0%}" for op, share in largest if op != "other" and share >= 0.05)


def columns(device: str, whole: bool = False) -> dict[str, Callable[[Row], str]]:
    """The cells of a row by their titles; of whole models only one pass is shown, and the share by op."""
    found: dict[str, Callable[[Row], str]] = {
        "op, shape": lambda row: f"{row['op']} {row['case']}",
        "dtype": lambda row: row["dtype"],
        "pass": lambda row: row["pass"],
        "skelops": lambda row: milliseconds(row["skelops_ms"]),
        "floor": lambda row: milliseconds(row["floor_ms"]),
        "eager": against("eager_ms"),
        "torch.compile": against("compile_ms"),
    }
    if device == "cuda":
        found["max-autotune"] = against("compile_max_ms")
        found["floor"] = lambda row: f"{milliseconds(row['floor_ms'])} ({row['percent_of_floor']:.0f}%)"
    if whole:
        del found["pass"]
        return found | {"peak memory": memory, "share by op": shares}
    found |= {"best other": best_other, "peak memory": memory}
    return found | ({"call": call} if device == "cuda" else {})


def source(meta: Row) -> str:
    """Where and with what the rows were measured."""
    if "threads" in meta:
        machine = f"{meta['device']}, {meta['threads']} threads, {meta['instruction_set']}"
        rates = f"float32 matmul {meta['matmul_gflop_per_s']['float32']:.0f} GFLOP/s"
    else:
        machine = f"{meta['device']}, driver {meta['driver']}, CUDA {meta['cuda']}, Triton {meta['triton']}"
        rates = ", ".join(f"{name} {rate / 1e3:.0f}" for name, rate in meta["matmul_gflop_per_s"].items())
        rates = f"matmul in TFLOP/s: {rates}; float32 matrix products: {meta['float32_matmul_precision']} precision"
    return (
        f"{machine}; torch {meta['torch']}, Python {meta['python']}; commit {meta['commit']}, {meta['date'][:10]};"
        f" copy {meta['copy_gb_per_s']:.0f} GB/s, {rates}."
    )


def markdown(content: dict[str, Any]) -> str:
    """The headline rows as tables, of ops and of whole models with backward pass, and where they were measured."""
    rows, lines = [row for row in content["rows"] if row["headline"]], []
    for whole in (False, True):
        some = [row for row in rows if ("shares" in row) == whole and not (whole and row["pass"] == "forward")]
        if some:
            cells = columns(some[0]["device"], whole)
            lines += [f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}"]
            lines += [f"| {' | '.join(cell(row) for cell in cells.values())} |" for row in some] + [""]
    return "\n".join([*lines, source(content["meta"])])


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
