"""Compiles every Triton kernel ahead of time, without a GPU: ``python -m benchmarks.aot [op ...]``.

Runs the benchmark cases of the ops with launches recorded instead of executed, and compiles what would have been
launched for sm_80, sm_90 and sm_100 with the tiles of `tiles.json`: in float32 (three TF32 products and one), bfloat16
and float16. The gate: no register spills (none above 64 bytes with Triton 3.6, for which the tiles were not chosen), no
more shared memory than a block can have, matrix products of 16 bits on tensor cores, and every entry of the tables
compiled. ``--quick``, which the tests run, takes every form in float32 (three products) for sm_90, and in bfloat16 and
for the other architectures one form of each kernel per tile; neither float16 nor single TF32 products.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import skelops
from benchmarks.case import Case
from skelops import _triton

#: Bytes of shared memory that one block can have.
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
#: Columns of tensor memory of a multiprocessor (sm_100).
TENSOR_MEMORY = 512
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
    torch.uint8: "u8",
}
TENSOR_CORES = re.compile(r"(wgmma|tcgen05\.mma|mma\.sync)")


@dataclass(frozen=True)
class Variant:
    """One compilation: names, so that it can be sent to another process."""

    module: str
    kernel: str
    architecture: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]
    options: tuple[tuple[str, int], ...]

    @property
    def dtype(self) -> str:
        """The pointer type that comes first."""
        return next((kind[1:] for _, kind in self.signature if kind.startswith("*")), "-")


class Report(NamedTuple):
    """What a compilation gave: registers and spilled bytes per thread, shared and tensor memory per block."""

    variant: Variant
    registers: int
    spilled: int
    shared: int
    tensor_memory: int
    tensor_core: str
    error: str


def lazy_inputs(case: Case) -> tuple[Any, ...]:
    """Arguments of a case as memory that is never touched, so that large shapes cost nothing."""
    with FakeTensorMode():
        fakes = case.inputs()

    def real(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
        if not value.is_floating_point():
            empty.zero_()  # indices, which are small and may be checked
        return empty.requires_grad_(value.requires_grad)

    return tuple(real(value) for value in fakes)


def _run(case: Case) -> None:
    """Forward and backward."""
    inputs = lazy_inputs(case)
    found = case.skelops(*inputs)
    outputs = [found] if isinstance(found, Tensor) else list(found or [])
    starts = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if starts:
        torch.autograd.grad(starts, leaves, [torch.empty_like(y) for y in starts], allow_unused=True)


def variant(launch: _triton.Launch, architecture: str) -> Variant:
    """What Triton would specialise a launch to: types, arguments that are 1 or None, multiples of 16."""
    kernel = launch.kernel
    signature, constants, divisible = [], [], []
    options = {"num_warps", "num_stages"}
    for name, value in [
        *zip(kernel.arg_names, launch.args, strict=False),
        *((k, v) for k, v in launch.meta.items() if k not in options),
    ]:
        if value is None or name in launch.meta or (isinstance(value, int) and value == 1):
            signature.append((name, "constexpr"))
            constants.append((name, value))
        elif isinstance(value, Tensor):
            signature.append((name, f"*{TYPES[value.dtype]}"))
            divisible.append(name)
        elif isinstance(value, float):
            signature.append((name, "fp32"))
        else:
            signature.append((name, "i32" if -(2**31) <= value < 2**31 else "i64"))
            if value % 16 == 0:
                divisible.append(name)
    chosen = tuple((k, v) for k, v in launch.meta.items() if k in options)
    return Variant(
        kernel.fn.__module__,
        kernel.fn.__name__,
        architecture,
        tuple(signature),
        tuple(constants),
        tuple(divisible),
        chosen,
    )


def _other_precisions(of: Variant) -> Iterator[Variant]:
    """The variant, with TF32 for float32, with float16 for bfloat16."""
    yield of
    if ("PRECISION", "tf32x3") in of.constants:
        constants = tuple((k, "tf32" if k == "PRECISION" else v) for k, v in of.constants)
        yield Variant(**{**of.__dict__, "constants": constants})
    if of.dtype == "bf16":
        signature = tuple((k, kind.replace("bf16", "fp16")) for k, kind in of.signature)
        yield Variant(**{**of.__dict__, "signature": signature})


def _ones(of: Variant) -> Variant:
    """The variant with every integer 1: a constant for Triton, on which kernels cannot call what tensors have."""
    integers = {name for name, kind in of.signature if kind in ("i32", "i64")}
    signature = tuple((name, "constexpr" if name in integers else kind) for name, kind in of.signature)
    constants = (*((name, 1) for name in integers), *of.constants)
    divisible = tuple(name for name in of.divisible if name not in integers)
    return Variant(**{**of.__dict__, "signature": signature, "constants": constants, "divisible": divisible})


def variants(ops: list[str]) -> tuple[list[Variant], set[str]]:
    """Every compilation that the cases ask for, and the table entries that none of them took."""
    found: dict[Any, Variant] = {}
    unused = {
        f"{kernel} / {case}" for kernel, table in _tables(ops).items() for cases in table.values() for case in cases
    }
    for architecture in SHARED_MEMORY:
        with _triton.recording(architecture) as launches, _triton.choosing({}) as taken, skelops.backend("triton"):
            for op in ops:
                for case in importlib.import_module(f"benchmarks.bench_{op}").cases("cuda"):
                    _run(case)
        for launch in launches:
            # Sizes that are 1 or a multiple of 16 make further specialisations; one of each kind is compiled.
            kind = tuple(x.is_contiguous() if isinstance(x, Tensor) else x is None for x in launch.args)
            for one in _other_precisions(variant(launch, architecture)):
                meta = tuple(sorted(launch.meta.items()))
                found.setdefault((one.kernel, architecture, one.dtype, one.constants, meta, kind), one)
                found.setdefault((one.module, one.kernel), _ones(one))
        unused -= {
            f"{kernel} / {key}" for kernel, case in taken for key in (case, "default")[: 1 + _falls_back(kernel, case)]
        }
    return list(found.values()), unused


def representative(found: list[Variant], ops: list[str]) -> list[Variant]:
    """What ``--quick`` takes: of the forms with one tile, that which takes most arguments, and that of `_ones`."""
    tiles = [tile for table in _tables(ops).values() for cases in table.values() for tile in cases.values()]
    blocks = {name for tile in tiles for name in tile}
    chosen: dict[Any, Variant] = {}
    for one in sorted(found, key=lambda one: sum(value is None for _, value in one.constants)):
        if one.dtype == "fp16" or ("PRECISION", "tf32") in one.constants:
            continue
        tile = tuple(constant for constant in one.constants if constant[0] in blocks)
        if one.architecture == "sm_90" and one.dtype != "bf16":
            chosen[one] = one
        else:
            sizes = any(kind in ("i32", "i64") for _, kind in one.signature)
            chosen.setdefault((one.module, one.kernel, one.architecture, one.dtype, one.options, tile, sizes), one)
    return list(chosen.values())


def _falls_back(kernel: str, case: str) -> bool:
    """Whether no table has an entry for a case of a kernel."""
    return not any(case in cases for cases in _triton.table()[kernel].values())


def _tables(ops: list[str]) -> dict[str, dict[str, dict[str, _triton.Tile]]]:
    """The shipped tables of the ops."""
    return {kernel: table for kernel, table in _triton.table().items() if any(kernel.startswith(op) for op in ops)}


def compile_variant(of: Variant) -> Report:
    """Compiles, and reads what the binary needs."""
    from triton import compile as triton_compile
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(of.module), of.kernel)
    index = {name: i for i, name in enumerate(kernel.arg_names)}
    attrs: dict[Any, Any] = {(index[name],): [["tt.divisibility", 16]] for name in of.divisible}
    constants: dict[Any, Any] = {(index[name],): value for name, value in of.constants}
    ordered = dict(sorted(of.signature, key=lambda item: index[item[0]]))
    capability = int(of.architecture.removeprefix("sm_"))
    try:
        source = ASTSource(kernel, ordered, constants, attrs)
        built = triton_compile(source, target=GPUTarget("cuda", capability, 32), options=dict(of.options))
    except Exception as error:  # a compiler's errors are of every kind, and each is a finding
        return Report(of, 0, 0, 0, 0, "-", str(error).strip().splitlines()[-1][:200] or repr(error))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    cores = sorted(set(TENSOR_CORES.findall(built.asm["ptx"])))
    spilled = numbers["STACK"] + numbers["LOCAL"]
    tensor_memory = getattr(built.metadata, "tmem_size", 0)
    return Report(of, numbers["REG"], spilled, built.metadata.shared, tensor_memory, " ".join(cores) or "-", "")


def _spills_allowed() -> int:
    """Bytes per thread: tiles were chosen with Triton 3.7; 3.6 spills a few registers in 20 of 3,153 compilations."""
    older = tuple(map(int, version("triton").split(".")[:2])) < (3, 7)
    return 64 if older else 0


def problems(report: Report) -> list[str]:
    """Why a compilation does not pass the gate."""
    if report.error:
        return [report.error]
    found = [f"spills {report.spilled} bytes"] if report.spilled > _spills_allowed() else []
    if report.shared > SHARED_MEMORY[report.variant.architecture]:
        found.append(f"needs {report.shared} bytes of shared memory")
    if report.tensor_memory > TENSOR_MEMORY:
        found.append(f"needs {report.tensor_memory} columns of tensor memory")
    if report.tensor_core == "-" and report.variant.dtype in ("bf16", "fp16") and _multiplies(report.variant):
        found.append("multiplies 16-bit matrices without tensor cores")
    return found


def _multiplies(of: Variant) -> bool:
    return any(name == "PRECISION" for name, _ in of.constants)


def line(report: Report) -> str:
    """One row of the table."""
    of = report.variant
    form = next((value for name, value in of.constants if name == "PRECISION" and of.dtype == "fp32"), "")
    blocks = " ".join(f"{k}={v}" for k, v in (*of.constants, *of.options) if isinstance(v, int) and k not in ("K", "V"))
    op = of.module.split(".")[-2]
    return (
        f"{op + of.kernel:<38} {of.architecture:<7} {of.dtype + ' ' + str(form):<10} {report.registers:>4} registers"
        f" {report.spilled:>5} spilled {report.shared:>7} shared  {report.tensor_core:<10} {blocks}"
        f"  {'; '.join(problems(report))}"
    ).rstrip()


def main() -> int:
    from benchmarks.__main__ import ops as all_ops

    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", help="which ops (default: all that have Triton kernels)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="compilations at a time (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer forms, as the tests do")
    parser.add_argument("--quiet", action="store_true", help="print what fails only")
    arguments = parser.parse_args()
    packages = {op: f"skelops.ops.{op}" for op in all_ops()}
    with_kernels = [op for op, name in packages.items() if find_spec(name) and _triton.has_kernels(name)]
    ops = arguments.ops or with_kernels
    found, unused = variants(ops)
    if arguments.quick:
        found = representative(found, ops)
    failed = [f"{entry}: no benchmark case takes this entry of the table" for entry in sorted(unused)]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for report in pool.map(compile_variant, found, chunksize=4):
            if problems(report):
                failed.append(line(report))
            if problems(report) or not arguments.quiet:
                print(line(report), flush=True)
    print(f"{len(found)} compilations, {len(failed)} failures", *failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    if _triton.interpreted():
        sys.exit("benchmarks.aot: expected TRITON_INTERPRET to be unset")
    if reason := _triton.missing():
        sys.exit(f"benchmarks.aot: {reason}")
    sys.exit(main())
