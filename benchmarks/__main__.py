"""Runs the benchmarks of the ops and reports them: ``python -m benchmarks [op ...] [--device cuda] [--json FILE]``.

With ``--budget`` every case is measured without torch.compile first, those of the README's table before the others;
then torch.compile joins in as far as the time goes, and takes the place of the rows that it completes.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import skelops
from benchmarks.case import Case
from benchmarks.measure import Cpu, passes
from benchmarks.measure_cuda import Cuda
from skelops.files import replaced

HERE = Path(__file__).parent
#: A case and the modes of torch.compile that it is measured with.
Step = tuple[Case, tuple[str, ...]]


def ops() -> list[str]:
    """The ops that have benchmarks, by the names of the files."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def commit() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def triton_version() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def meta(bench: Cpu | Cuda) -> dict[str, Any]:
    """Where and with what the figures are measured."""
    return {
        **bench.meta(),
        "copy_gb_per_s": bench.rates.bandwidth / 1e9,
        "matmul_gflop_per_s": {name: rate / 1e9 for name, rate in bench.rates.matmul.items()},
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "skelops": skelops.__version__,
        "torch": torch.__version__,
        "triton": triton_version(),
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text: times in ms, and how many times faster than each other way skelops is."""

    def ratio(row: dict[str, Any], key: str) -> str:
        return f"{row[key] / row['skelops_ms']:.2f}x" if row.get(key) else "-"

    lines = [
        f"{'op':16}{'case':44}{'dtype':10}{'pass':18}{'skelops':>10}{'floor':>10}{'eager':>9}{'compile':>9}"
        f"{'autotune':>9}{'other':>9}"
    ]
    for row in rows:
        lines.append(
            f"{row['op']:16}{row['case']:44}{row['dtype']:10}{row['pass']:18}{row['skelops_ms']:>8.4g}ms{row['floor_ms']:>8.3g}ms"
            f"{ratio(row, 'eager_ms'):>9}{ratio(row, 'compile_ms'):>9}{ratio(row, 'compile_max_ms'):>9}"
            f"{ratio(row, 'best_other_ms'):>9}"
        )
    return "\n".join(lines)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as file:
        file.write_text(json.dumps(content, indent=1) + "\n")


def stages(cases: list[Case], modes: tuple[str, ...], in_budget: bool) -> list[list[Step]]:
    """What is measured, in order: all at once, or from the most to the least worthwhile."""
    if not in_budget:
        return [[(case, modes) for case in cases]]
    headline, rest = ([case for case in cases if case.headline == first] for first in (True, False))
    grown = [modes[:count] for count in range(1, len(modes) + 1)]
    return [
        [(case, ()) for case in headline + rest],
        *([(case, more) for case in headline] for more in grown),
        *([(case, more) for case in rest] for more in grown),
    ]


class Results:
    """Rows by op, case, dtype and pass, and the cases that failed; the file is complete after every case."""

    def __init__(self, about: dict[str, Any], path: Path | None) -> None:
        self.about, self.path = about, path
        self.rows: dict[tuple[str, ...], dict[str, Any]] = {}
        self.failures: dict[tuple[str, ...], str] = {}

    def measure(self, bench: Cpu | Cuda, case: Case, seconds: float, modes: tuple[str, ...]) -> None:
        first = not self.rows
        try:
            rows = bench.measure(case, seconds, modes)
        except Exception as error:  # the other cases are still worth their time
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            self.failures[case.op, case.name, str(case.dtype).removeprefix("torch.")] = message
            print(f"FAILED {case.op} {case.name} {case.dtype}: {message}", flush=True)
        else:
            self.rows |= {tuple(row[key] for key in ("op", "case", "dtype", "pass")): row for row in rows}
            print(table(rows) if first else table(rows).split("\n", 1)[1], flush=True)
        if self.path:
            failures = [
                dict(zip(("op", "case", "dtype", "error"), (*k, v), strict=True)) for k, v in self.failures.items()
            ]
            write_json(self.path, {"meta": self.about, "rows": list(self.rows.values()), "failures": failures})


def run(bench: Cpu | Cuda, plan: list[list[Step]], results: Results, seconds: float, deadline: float) -> None:
    """Measures stage by stage; with a deadline, a step begins only if the longest of its stage so far would fit in."""
    for stage in plan:
        longest = 0.0
        for case, modes in stage:
            start = time.monotonic()
            if start + longest > deadline:
                print(f"no time left for {case.op} {case.name} {case.dtype}", *modes, flush=True)
                break
            results.measure(bench, case, seconds, modes)
            longest = max(longest, time.monotonic() - start)


def main() -> int:
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", help=f"which ops (default: all of {', '.join(ops())})")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the rows and where they were measured to this file")
    parser.add_argument("--headline", action="store_true", help="only the cases of the README's table")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it takes most of the time)")
    parser.add_argument("--tf32", action="store_true", help="float32 matrix products in TF32 (default: IEEE)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time to spend on each row (default: %(default)s)")
    parser.add_argument("--budget", type=float, help="seconds for everything: the most worthwhile first, fewer rounds")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.ops) - set(ops()))
    if unknown:
        parser.error(f"unknown op {', '.join(unknown)}; there are {', '.join(ops())}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    torch.set_float32_matmul_precision("high" if arguments.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = arguments.tf32
    bench: Cpu | Cuda = Cuda() if arguments.device == "cuda" else Cpu()
    cases: list[Case] = []
    for op in arguments.ops or ops():
        cases += importlib.import_module(f"benchmarks.bench_{op}").cases(arguments.device)
    cases = [case for case in cases if case.headline or not arguments.headline]
    seconds, deadline = arguments.seconds, float("inf")
    if arguments.budget:
        deadline = start + arguments.budget
        # A quarter of the time goes into rounds of the first stage; compiling and checking take the rest.
        seconds = min(seconds, arguments.budget / 4 / max(1, sum(len(list(passes(case))) for case in cases)))
    plan = stages(cases, () if arguments.no_compile else bench.modes, arguments.budget is not None)
    results = Results(meta(bench), arguments.json)
    run(bench, plan, results, seconds, deadline)
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
