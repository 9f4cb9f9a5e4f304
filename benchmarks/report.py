"""The README's table from a file of results: ``python -m benchmarks.report benchmarks/results/FILE.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("op, shape", "dtype", "pass", "skelops", "floor", "eager", "torch.compile", "best other", "peak memory")
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def line(row: dict[str, Any]) -> str:
    """One row in Markdown: times, and in brackets how many times faster skelops is."""

    def against(key: str) -> str:
        return f"{row[key]:.1f} ms ({row[key] / row['skelops_ms']:.1f}x)" if row[key] else "-"

    memory = (
        f"{row['skelops_peak_mb']:.0f} : {row['eager_peak_mb']:.0f} MB eager"
        if row["eager_peak_mb"] is not None
        else "-"
    )
    other = f"{row['best_other']}: {against('best_other_ms')}" if row["best_other"] else "-"
    cells = (
        f"{row['op']} {row['case']}",
        row["dtype"],
        row["pass"],
        f"{row['skelops_ms']:.2f} ms",
        f"{row['floor_ms']:.2f} ms",
        against("eager_ms"),
        against("compile_ms"),
        other,
        memory,
    )
    return f"| {' | '.join(cells)} |"


def markdown(content: dict[str, Any]) -> str:
    """The headline rows as a table, with where they were measured."""
    meta = content["meta"]
    rows = [line(row) for row in content["rows"] if row["headline"]]
    source = (
        f"{meta['device']}, {meta['threads']} threads, {meta['instruction_set']}; torch {meta['torch']}, Python"
        f" {meta['python']}; commit {meta['commit']}, {meta['date'][:10]}; copy {meta['copy_gb_per_s']:.0f} GB/s,"
        f" float32 matmul {meta['matmul_gflop_per_s']['float32']:.0f} GFLOP/s."
    )
    return "\n".join([HEADER, *rows, "", source])


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
