"""The CUDA kernels, compiled for the CPU and run thread by thread, against the references of their ops.

No proof of speed, of races or of how the GPU orders memory: of the arithmetic, the index arithmetic and the barriers.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import assert_no_worse
from torch import Tensor

from skelops.ops.enqueue import reference as enqueue_reference
from skelops.ops.mask_pool import reference as mask_reference
from skelops.ops.squeeze_pool import reference as squeeze_reference

ROOT = Path(__file__).parents[1]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = [torch.contiguous_format, torch.channels_last]
# B, C, T, V
SHAPES = [(2, 3, 5, 25), (2, 2, 13, 20), (1, 2, 1, 17), (2, 1, 3, 1), (1, 33, 2, 25), (1, 2, 200, 25), (2, 1, 9, 1000)]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernels with")
    library = tmp_path_factory.mktemp("emulation") / "kernels.so"
    includes = [f"-I{ROOT / 'csrc/cuda/kernels'}", f"-I{ROOT / 'tests/cuda_emulation'}"]
    flags = ["-std=gnu++20", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
    source = str(ROOT / "tests/cuda_emulation/kernels.cpp")
    result = subprocess.run([compiler, *flags, *includes, source, "-o", str(library)], capture_output=True, text=True)
    if "unrecognized command-line option" in result.stderr:
        pytest.skip("this g++ has no C++20")
    assert result.returncode == 0, result.stderr[-3000:]
    return ctypes.CDLL(str(library))


def call(function: Callable[..., None], *args: object) -> None:
    """Tensors as pointers, integers as 64 bits (the callee reads the part it declares)."""
    function.restype = None
    given = [ctypes.c_void_p(a.data_ptr() or None) if isinstance(a, Tensor) else a for a in args]
    function(
        *[ctypes.c_void_p(None) if a is None else ctypes.c_int64(int(a)) if isinstance(a, int) else a for a in given]
    )


def off_by_one_element(x: Tensor) -> Tensor:
    """The same map one element further in memory, so that no plane starts where 16 divides."""
    memory = x.new_empty(x.numel() + 1)
    return memory[1:].as_strided(x.shape, x.stride(), 1).copy_(x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("with_lengths", [False, True])
def test_squeeze_pool(
    kernels: ctypes.CDLL,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    with_lengths: bool,
) -> None:
    B, C, T, V = shape
    bodies = B if with_lengths else 1
    N, last = B // bodies, memory_format == torch.channels_last
    x = off_by_one_element((torch.randn(shape) + 3).to(dtype).contiguous(memory_format=memory_format))
    lengths = torch.tensor([max(T - 2, 0), 0, T][:B]) if with_lengths else None
    outputs = [x.new_empty(N, C, T), x.new_empty(N, C, V), x.new_empty(N, C)]
    call(kernels.squeeze_pool, DTYPES.index(dtype), last, x, lengths, N, C, T, V, bodies, *outputs)
    eager = squeeze_reference.squeeze_pool(x, lengths, bodies)
    truth = squeeze_reference.squeeze_pool(x.double(), lengths, bodies)
    for name, ours, low, high in zip(("frames", "joints", "mean"), outputs, eager, truth, strict=True):
        assert_no_worse(ours, low, high, name)

    upstream = [torch.randn(y.shape).to(dtype) for y in outputs]
    grad = off_by_one_element(torch.empty_like(x))
    staged = min(T, 64)
    call(kernels.squeeze_pool_backward, DTYPES.index(dtype), last, *upstream, lengths, N, C, T, V, bodies, staged, grad)
    eager_grad, truth_grad = (
        squeeze_reference.squeeze_pool_backward(*parts, lengths, bodies, last)
        for parts in (upstream, [part.double() for part in upstream])
    )
    assert_no_worse(grad, eager_grad, truth_grad, "gradient")


@pytest.mark.parametrize("form", ["TV", "NTV", "BCTV"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("by_size", [False, True])
def test_mask_pool(
    kernels: ctypes.CDLL, form: str, soft: bool, dtype: torch.dtype, memory_format: torch.memory_format, by_size: bool
) -> None:
    for B, C, T, V in [(2, 3, 5, 25), (4, 1, 13, 20), (2, 33, 1, 17)]:
        x = off_by_one_element(torch.randn(B, C, T, V).to(dtype).contiguous(memory_format=memory_format))
        mask = torch.rand({"TV": (T, V), "NTV": (B // 2, T, V), "BCTV": (B, C, T, V)}[form])
        mask = mask.to(dtype) if soft else mask > 0.5
        if form == "BCTV":
            mask = mask.contiguous(memory_format=memory_format)
        last = memory_format == torch.channels_last
        rows_per_mask = {"TV": B, "NTV": 2, "BCTV": 1}[form]
        sizes = (B, C, T * V, rows_per_mask, form == "BCTV", by_size)
        outputs = [x.new_empty(B, C), x.new_empty(B, C)]
        call(kernels.mask_pool, DTYPES.index(dtype), last, not soft, x, mask, *sizes, *outputs)
        wide = mask.double() if soft else mask
        eager = mask_reference.mask_pool(x, mask, by_size)
        truth = mask_reference.mask_pool(x.double(), wide, by_size)
        for name, ours, low, high in zip(("inside", "outside"), outputs, eager, truth, strict=True):
            assert_no_worse(ours, low, high, name)

        upstream = [torch.randn(B, C).to(dtype) for _ in range(2)]
        grad = off_by_one_element(torch.empty_like(x))
        call(kernels.mask_pool_backward, DTYPES.index(dtype), last, not soft, *upstream, mask, *sizes, grad)
        low = mask_reference.mask_pool_backward(*upstream, mask, by_size, last)
        high = mask_reference.mask_pool_backward(*(u.double() for u in upstream), wide, by_size, last)
        assert_no_worse(grad, low, high, "gradient")


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_an_empty_side_of_a_mask_is_zero(
    kernels: ctypes.CDLL, value: float, memory_format: torch.memory_format
) -> None:
    x, mask = torch.randn(2, 3, 5, 25).contiguous(memory_format=memory_format), torch.full((5, 25), value)
    outputs, last = [x.new_empty(2, 3), x.new_empty(2, 3)], memory_format == torch.channels_last
    call(kernels.mask_pool, 0, last, False, x, mask, 2, 3, 125, 2, False, False, *outputs)
    torch.testing.assert_close(outputs[0 if value else 1], x.mean((2, 3)))
    assert not outputs[1 if value else 0].any()


@pytest.mark.parametrize("layout", ["slots", "dims"])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("dtypes", [(a, b) for a in DTYPES[:2] for b in DTYPES], ids=str)
def test_enqueue(kernels: ctypes.CDLL, layout: str, blocks: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    for Q, D, n, start in [(10, 3, 4, 8), (50, 33, 37, 49), (7, 5, 23, -2), (1, 4, 3, 0), (9, 4, 0, 5)]:
        queue = torch.randn(Q, D).to(dtypes[0])
        queue = queue.t().contiguous().t() if layout == "dims" else queue
        keys, pointer = torch.randn(n, D).to(dtypes[1]), torch.tensor([start])
        expected, end = queue.clone(), pointer.clone()
        enqueue_reference.enqueue_(expected, keys, end)
        sizes = torch.tensor([Q, D, max(0, n - Q), n, *queue.stride(), *keys.stride()])
        call(kernels.enqueue, *map(DTYPES.index, dtypes), queue, keys, pointer, sizes, blocks)
        assert torch.equal(queue, expected)
        assert torch.equal(pointer, end)
