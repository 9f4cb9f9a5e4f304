"""The CUDA sources compile for every architecture, without spills; memory checks where there is a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.nvcc import ARCHITECTURES, SOURCES, compile_source

FILES = sorted(SOURCES.glob("*.cu"))

STEP = """
import torch, skelops
torch.manual_seed(0)
with skelops.backend("cuda"):
    for dtype in (torch.float32, torch.bfloat16):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            for shape in ((3, 5, 13, 25), (2, 33, 1, 17), (1, 2, 200, 20)):
                x = torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=memory_format)
                x.requires_grad_()
                lengths = torch.tensor([1, 0, 13], device="cuda")[: len(x)]
                mask = torch.rand(shape[2:], device="cuda") > 0.5
                for outputs in (skelops.squeeze_pool(x, lengths), skelops.mask_pool(x, mask)):
                    sum(y.float().sum() for y in outputs).backward()
        for n, Q in ((4, 10), (300, 1000), (37, 7)):
            queue, pointer = torch.zeros(Q, 130, device="cuda", dtype=dtype), torch.tensor(Q - 1, device="cuda")
            skelops.enqueue_(queue, torch.randn(n, 130, device="cuda"), pointer)
torch.cuda.synchronize()
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH")
@pytest.mark.parametrize("source", FILES, ids=lambda path: path.stem)
def test_every_kernel_passes_the_gate(source: Path) -> None:
    kernels = compile_source(source)
    assert {kernel.architecture for kernel in kernels} == set(ARCHITECTURES)
    assert [kernel for kernel in kernels if not kernel.passes] == []


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer(tool: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "7", sys.executable, "-c", STEP]
    # Without torch's cache of memory every tensor is an allocation with bounds of its own.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
