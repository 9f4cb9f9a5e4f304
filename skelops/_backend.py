"""Which backend serves an op: one pure function, `choose`, and the switch that forces one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch

from skelops import _native, _triton

#: Backends in order of preference, per device type.
BACKENDS = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
#: Floating-point dtypes that the kernels of a backend take; a call with any other runs on the reference.
DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}
NAMES = ("auto", "reference", "cpu", "triton", "cuda")

_forced = "auto"
_warned: set[str] = set()


class Choice(NamedTuple):
    """The backend that serves a call, and for each preferred one why it does not."""

    backend: str
    reasons: dict[str, str]


def unavailable(backend: str, package: str, op: str, device: str, dtype: torch.dtype) -> str | None:
    """Why ``backend`` cannot serve ``op`` on a device type at ``dtype`` on this machine; None where it can."""
    if backend == "reference":
        return None
    if backend == "triton":
        if not _triton.runs_on(device):
            return f"it does not run on {device}"
        if reason := _triton.missing():
            return reason
        if _triton.find(package, op) is None:
            return f"{op} has no Triton kernel"
    else:
        if device != backend:
            return f"it does not run on {device}"
        if reason := _native.missing[backend]:
            return reason
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"skelops_{backend}::{op}", backend.upper()):
            return f"{op} has no {backend.upper()} kernel"
    if dtype not in DTYPES[backend]:
        return f"it takes {', '.join(str(d).removeprefix('torch.') for d in DTYPES[backend])}; got {dtype}"
    return None


@cache
def choose(package: str, op: str, device: str, dtype: torch.dtype, forced: str = "auto") -> Choice:
    """The backend for one op, device type and dtype, with the reasons against those that were preferred.

    Args:
        package: package of the op, such as ``skelops.ops.graph_conv``.
        op: name of the dispatcher op, without namespace.
        device: device type ("cpu", "cuda", ...); an unknown one is served by the reference.
        dtype: what the call brings.
        forced: a backend to insist on, or "auto".

    Raises:
        RuntimeError: ``forced`` names a backend that cannot serve the call.
    """
    if forced != "auto":
        if reason := unavailable(forced, package, op, device, dtype):
            raise RuntimeError(f"skelops.backend({forced!r}): {op}: {reason}")
        return Choice(forced, {})
    reasons: dict[str, str] = {}
    for backend in BACKENDS.get(device, ("reference",)):
        reason = unavailable(backend, package, op, device, dtype)
        if reason is None:
            return Choice(backend, reasons)
        reasons[backend] = reason
    raise AssertionError("the reference serves everything")


def resolve(package: str, op: str, device: str, dtype: torch.dtype) -> str:
    """`choose` for a call that is about to run: tells once, or refuses, when a kernel that should be there is missing.

    A dtype that no kernel takes (float64) runs on the reference by design and is not reported.
    """
    choice = choose(package, op, device, dtype, _forced)
    if choice.backend == "reference" and any(dtype in DTYPES[backend] for backend in choice.reasons):
        reason = next(iter(choice.reasons.values()))
        if os.environ.get("SKELOPS_REQUIRE_NATIVE") == "1":
            raise RuntimeError(f"SKELOPS_REQUIRE_NATIVE=1: {op} on {device} would run on the reference: {reason}")
        if reason not in _warned:
            _warned.add(reason)
            warnings.warn(f"skelops runs on the slow reference backend: {reason}", RuntimeWarning, stacklevel=4)
    return choice.backend


def is_auto() -> bool:
    """Whether no backend is forced."""
    return _forced == "auto"


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Forces every op in the block to one backend: ``with skelops.backend("reference"): ...``.

    For debugging and benchmarks. It holds for the whole process, for a backward pass only if that runs in the block.

    Args:
        name: "auto" (the default choice), "reference", "cpu", "triton" or "cuda".

    Raises:
        ValueError: the name is unknown.
        RuntimeError: raised by an op in the block that the backend cannot serve, with the reason.
    """
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}, got {name!r}")
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before
