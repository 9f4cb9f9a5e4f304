"""Runs the benchmarks of the ops and reports them: ``python -m benchmarks [op ...] [--json FILE]``."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import skelops
from benchmarks.case import Case
from benchmarks.measure import Machine, measure
from skelops import _native

HERE = Path(__file__).parent


def ops() -> list[str]:
    """The ops that have benchmarks, by the names of the files."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def cpu_name() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def commit() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def meta(machine: Machine) -> dict[str, Any]:
    """Where and with what the figures were measured."""
    return {
        "device": cpu_name(),
        "threads": torch.get_num_threads(),
        "instruction_set": _native.instruction_set(),
        "copy_gb_per_s": machine.bandwidth / 1e9,
        "matmul_gflop_per_s": {str(d).removeprefix("torch."): rate / 1e9 for d, rate in machine.matmul.items()},
        "skelops": skelops.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text: times in ms, and how many times faster than each other way skelops is."""

    def ratio(row: dict[str, Any], key: str) -> str:
        return f"{row[key] / row['skelops_ms']:.2f}x" if row[key] else "-"

    lines = [
        f"{'op':16}{'case':44}{'dtype':10}{'pass':18}{'skelops':>10}{'floor':>9}{'eager':>9}{'compile':>9}{'other':>9}"
    ]
    for row in rows:
        lines.append(
            f"{row['op']:16}{row['case']:44}{row['dtype']:10}{row['pass']:18}{row['skelops_ms']:>8.3f}ms{row['floor_ms']:>7.2f}ms"
            f"{ratio(row, 'eager_ms'):>9}{ratio(row, 'compile_ms'):>9}{ratio(row, 'best_other_ms'):>9}"
        )
    return "\n".join(lines)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("ops", nargs="*", help=f"which ops (default: all of {', '.join(ops())})")
    parser.add_argument("--json", type=Path, help="write the rows and where they were measured to this file")
    parser.add_argument("--headline", action="store_true", help="only the cases of the README's table")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it takes most of the time)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time to spend on each row (default: %(default)s)")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.ops) - set(ops()))
    if unknown:
        parser.error(f"unknown op {', '.join(unknown)}; there are {', '.join(ops())}")
    machine = Machine()
    rows: list[dict[str, Any]] = []
    for op in arguments.ops or ops():
        cases: list[Case] = list(importlib.import_module(f"benchmarks.bench_{op}").cases())
        for case in cases:
            if case.headline or not arguments.headline:
                rows += measure(case, machine, arguments.seconds, not arguments.no_compile)
                print(table(rows[-2:]).split("\n", 1)[1] if len(rows) > 2 else table(rows), flush=True)
    if arguments.json:
        write_json(arguments.json, {"meta": meta(machine), "rows": rows})


if __name__ == "__main__":
    main()
