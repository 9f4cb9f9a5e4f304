"""The compiled part: loading it, and what it says of itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "lib"
BUILD_HINT = "build it with: pip install --no-build-isolation ."
#: Instruction sets of the CPU kernels: the values of SKELOPS_CPU_LEVEL, and what they are called.
LEVELS = {"portable": "portable", "avx2": "AVX2", "avx512": "AVX-512", "avx512_bf16": "AVX-512 BF16"}


def _report(part: str) -> str:
    """Why a part is missing: the line that the build left, or that no build ran."""
    try:
        reason = json.loads((FOLDER / "build.json").read_text()).get(part, "the build left it out")
    except (OSError, ValueError):
        reason = "no native build ran"
    return "it was built, but its file is gone" if reason == "built" else str(reason).splitlines()[0]


def _check_level() -> None:
    """SKELOPS_CPU_LEVEL, where it is set, names an instruction set, in capitals or not.

    Raises:
        ValueError: it does not.
    """
    wish = os.environ.get("SKELOPS_CPU_LEVEL")
    if wish and wish.lower() not in LEVELS:
        raise ValueError(f"SKELOPS_CPU_LEVEL: expected one of {', '.join(LEVELS)}, got {wish!r}")


def _load(backend: str) -> str | None:
    name = f"libskelops_{backend}"
    library = FOLDER / f"{name}.so"
    if not library.exists():
        return f"native {backend.upper()} kernels are not built ({_report(name)}); {BUILD_HINT}"
    if backend == "cuda" and torch.version.cuda is None:
        return f"native CUDA kernels need a CUDA build of torch; this is {torch.__version__}"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"native {backend.upper()} kernels do not load ({str(error).splitlines()[0]}); {BUILD_HINT}"
    return None


_check_level()
#: Why the kernels of a backend are missing, in one line; None where they are loaded.
missing: dict[str, str | None] = {backend: _load(backend) for backend in ("cpu", "cuda")}


def instruction_set() -> str | None:
    """The instruction set that the CPU kernels run with, or None where they are not loaded.

    The environment variable SKELOPS_CPU_LEVEL (portable, avx2, avx512, avx512_bf16) lowers it.
    """
    return None if missing["cpu"] else list(LEVELS.values())[torch.ops.skelops_cpu.instruction_set()]
