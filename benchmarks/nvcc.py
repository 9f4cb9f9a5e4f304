"""Compiles the CUDA kernels ahead of time, without a GPU: ``python -m benchmarks.nvcc``.

For sm_80, sm_90 and sm_100: registers, spills and static shared memory of every kernel. The gate: no spills, no stack,
no more than 48 KB of static shared memory.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
SOURCES = Path(__file__).parents[1] / "csrc" / "cuda"
STATIC_SHARED = 48 * 1024
ENTRY = re.compile(
    r"Compiling entry function '(\S+)' for '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores,"
    r" (\d+) bytes spill loads.*?Used (\d+) registers(.*?)\n",
    re.S,
)


class Kernel(NamedTuple):
    """A compiled kernel: registers and bytes per thread, static shared memory per block."""

    name: str
    architecture: str
    registers: int
    spilled: int
    shared: int

    @property
    def passes(self) -> bool:
        return self.spilled == 0 and self.shared <= STATIC_SHARED


def compile_source(source: Path) -> list[Kernel]:
    """The kernels of a file.

    Raises:
        RuntimeError: it does not compile; with what nvcc says.
    """
    include = Path(torch.__file__).parent / "include"
    flags = ["-std=c++20", "-O3", "-Xptxas=-v", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    targets = [f"-gencode=arch={name.replace('sm', 'compute')},code={name}" for name in ARCHITECTURES]
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *flags, *targets, f"-isystem={include}", "-c", str(source), "-o", f"{folder}/kernels.o"]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{result.stderr[-3000:]}")
    kernels = []
    for name, architecture, stack, stores, loads, registers, rest in ENTRY.findall(result.stderr):
        shared = re.search(r"(\d+) bytes smem", rest)
        spilled = int(stack) + int(stores) + int(loads)
        kernels.append(Kernel(name, architecture, int(registers), spilled, int(shared[1]) if shared else 0))
    return kernels


def main() -> int:
    if shutil.which("nvcc") is None:
        sys.exit("benchmarks.nvcc: expected nvcc on the PATH, found none")
    failures = 0
    for source in sorted(SOURCES.glob("*.cu")):
        for kernel in compile_source(source):
            failures += not kernel.passes
            usage = f"{kernel.registers:>4} registers {kernel.spilled:>5} spilled {kernel.shared:>6} shared"
            print(f"{kernel.name:<110} {kernel.architecture:<7} {usage}{'' if kernel.passes else '  FAILS'}")
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
