"""Launching Triton kernels: tile choices as data, the tensor's own device, the precision of dots.

Kernels live in ``skelops/ops/NAME/triton.py``, which is imported at the first call that needs it: a CPU build of torch
brings no Triton. There the function NAME takes the arguments of the op and the list of its outputs, and launches.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

Tile = dict[str, int]
#: Programs along the second or third axis of a grid, at most.
LONGEST = 65535


class Launch(NamedTuple):
    """What a launch would have run: a kernel, on which grid, its positional arguments, and its compile-time ones."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    meta: dict[str, Any]


#: Takes launches instead of a device while `recording`, for an architecture.
_recorded: list[Launch] | None = None
_architecture = "default"
#: Tiles that go before those of the table, by kernel, while `choosing`; and those that were taken.
_chosen: dict[str, Tile] = {}
_taken: dict[tuple[str, str], Tile] | None = None


def missing() -> str | None:
    """Why Triton kernels cannot run anywhere on this machine, in one line; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'skelops[triton]'"
    return None


def runs_on(device: str) -> bool:
    """Whether Triton kernels take tensors of a device type: CUDA's, or any under Triton's interpreter."""
    return device == "cuda" or interpreted() or _recorded is not None


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 makes kernels run in Python on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def has_kernels(package: str) -> bool:
    """Whether the package of an op has Triton kernels."""
    return importlib.util.find_spec(f"{package}.triton") is not None


@cache
def find(package: str, op: str) -> Callable[..., None] | None:
    """The function that launches the kernels of an op, or None where it has none."""
    if not has_kernels(package):
        return None
    return getattr(importlib.import_module(f"{package}.triton"), op, None)


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **meta: Any) -> None:
    """``kernel[grid](*args, **meta)`` on ``device``; nothing where the grid is empty."""
    if 0 in grid:
        return
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, args, meta))
    elif device.type != "cuda" or device.index == torch.cuda.current_device():
        kernel[grid](*args, **meta)
    else:
        # Triton launches on the current device, which need not be the tensor's.
        with torch.cuda.device(device):
            kernel[grid](*args, **meta)


def launch_by_sample(
    kernel: Any, blocks: tuple[int, ...], samples: int, device: torch.device, *args: Any, **meta: Any
) -> None:
    """`launch` on a grid whose last axis is one of samples, in pieces where there are more than it takes.

    The kernel is told the first sample of its piece, ``FIRST``, as a constant: no register holds the usual zero.
    """
    for first in range(0, samples, LONGEST):
        launch(kernel, (*blocks, min(samples - first, LONGEST)), device, *args, FIRST=first, **meta)


@contextmanager
def recording(architecture: str) -> Iterator[list[Launch]]:
    """Collects launches instead of running them, with the tiles of an architecture."""
    global _recorded, _architecture
    before, (_recorded, _architecture) = (_recorded, _architecture), ([], architecture)
    tile.cache_clear()
    try:
        yield _recorded
    finally:
        _recorded, _architecture = before
        tile.cache_clear()


@contextmanager
def choosing(chosen: dict[str, Tile]) -> Iterator[dict[tuple[str, str], Tile]]:
    """Takes the tiles given by kernel name before those of the table; collects what was taken, by (kernel, case)."""
    global _chosen, _taken
    before, (_chosen, _taken) = (_chosen, _taken), (chosen, {})
    tile.cache_clear()
    try:
        yield _taken
    finally:
        _chosen, _taken = before
        tile.cache_clear()


def dot_precision(dtype: torch.dtype) -> str:
    """``input_precision`` of ``tl.dot``: for float32 TF32 where torch's own matmul precision allows it.

    Else three TF32 products on the tensor cores, which keep 22 bits of a product, where float32 rounds to 24: IEEE
    products ("ieee") run on the scalar units, many times slower and with more registers than there are.
    """
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def user_table() -> Path:
    """Where ``skelops tune`` writes its choices; they go before those of the package.

    The environment variable SKELOPS_TILES names another file.

    Raises:
        RuntimeError: no file is named, and the user has no home.
    """
    if named := os.environ.get("SKELOPS_TILES"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skelops" / "tiles.json"


def _user_file() -> bytes | None:
    """The user's table; None where there is none. A default one that cannot be reached is none."""
    try:
        path = user_table()
        return path.read_bytes() if path.exists() else None
    except (RuntimeError, OSError):
        if os.environ.get("SKELOPS_TILES"):
            raise
        return None


@cache
def table() -> dict[str, dict[str, dict[str, Tile]]]:
    """The tiles of all kernels: kernel -> architecture ("sm_90", or "default") -> case (or "default") -> tile.

    Raises:
        ValueError: the user's table is broken; names the file.
        OSError: the file that SKELOPS_TILES names cannot be read.
    """
    shipped: dict[str, dict[str, dict[str, Tile]]] = {}
    for file in sorted((Path(__file__).parent / "ops").glob("*/tiles.json")):
        shipped.update(json.loads(file.read_text()))
    if (content := _user_file()) is not None:
        try:
            tuned = json.loads(content)
            for kernel in shipped.keys() & tuned.keys():
                for architecture, cases in tuned[kernel].items():
                    shipped[kernel].setdefault(architecture, {}).update(cases)
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{user_table()}: not a table of tiles ({error}); delete it or run skelops tune again"
            ) from error
    return shipped


@cache
def architecture(device: torch.device) -> str:
    """ "sm_90" and the like; "default" where kernels are interpreted."""
    if device.type != "cuda":
        return _architecture
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache
def tile(kernel: str, device: torch.device, case: str = "default") -> Tile:
    """The tile of a kernel: that of the case before the default one, of the device's architecture before any other's.

    A tile holds the kernel's block sizes by name, ``num_warps`` and ``num_stages``; pass it as ``**tile(...)``.
    """
    found = _chosen.get(kernel) or _entry(kernel, device, case)
    if _taken is not None:
        _taken[kernel, case] = found
    return found


def _entry(kernel: str, device: torch.device, case: str) -> Tile:
    cases = table()[kernel]
    here = _architecture if _recorded is not None else architecture(device)
    for key in (case, "default"):
        for name in (here, "default"):
            if key in cases.get(name, {}):
                return cases[name][key]
    raise KeyError(f"tiles.json: {kernel} has no tile for {case}, and no default one")


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; a few where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def splits(device: torch.device, items: int, programs: int) -> int:
    """Into how many shares a reduction over ``items`` is cut, so that ``programs`` times that many fill the GPU.

    At least 1, so that an empty reduction still writes its zeros.
    """
    return max(1, min(items, 4 * processors(device) // max(programs, 1)))
