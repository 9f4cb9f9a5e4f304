"""The CPU kernels as compiled for lower instruction sets: the tests marked `every_level`, a process for each level."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.cpu
@pytest.mark.parametrize("level", ["avx512", "avx2", "portable"])
def test_kernels_of_the_level(level: str) -> None:
    files = [str(file) for file in Path(__file__).parent.glob("test_*.py") if "mark.every_level" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "every_level", "-k", "not triton and not cuda", *files]
    result = subprocess.run(command, env={**os.environ, "SKELOPS_CPU_LEVEL": level}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
