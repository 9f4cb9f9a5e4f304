"""``skelops tune``: measures tiles of the Triton kernels on this GPU and keeps the faster ones in the user's table.

Each kernel is timed within calls of the public ops at common shapes. From the tile taken now the search goes to the
fastest neighbour (a block size or the warps doubled or halved, one stage more or less) as long as that is faster. A
neighbour that does not compile, asks for more than the GPU has, or changes results is passed over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

import skelops
from skelops import _triton
from skelops._calls import CALLS
from skelops._triton import Tile
from skelops.cli import CommandError, user_errors
from skelops.files import replaced

Run = Callable[[], list[Tensor]]
#: Milliseconds of a run.
Clock = Callable[[Run], float]
DTYPES = (torch.float32, torch.bfloat16)
#: Least and most of what a tile says beside block sizes.
WARPS, STAGES, BLOCK = (1, 16), (1, 5), (1, 512)
#: A tile must take less than this share of the time of the one before: below are the ups and downs of a clock.
GAIN = 0.98


def runs(call: partial) -> Iterator[Run]:
    """The forward pass of a call, and its backward pass if it has one."""

    def forward() -> list[Tensor]:
        result = call()
        return [result] if isinstance(result, Tensor) else list(result)

    yield torch.no_grad()(forward)
    leaves = [x for x in call.args if isinstance(x, Tensor) and x.requires_grad]
    outputs = [y for y in forward() if y.requires_grad]
    if outputs:
        upstream = [torch.randn_like(y) for y in outputs]
        yield lambda: list(torch.autograd.grad(outputs, leaves, upstream, retain_graph=True))


def neighbours(tile: Tile) -> Iterator[Tile]:
    """Tiles that differ from one in a single respect."""
    for name, value in tile.items():
        least, most = {"num_warps": WARPS, "num_stages": STAGES}.get(name, BLOCK)
        for other in (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2):
            if least <= other <= most:
                yield {**tile, name: other}


def _same(results: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether results agree to the precision of their dtype, sums being taken in another order."""
    return all(
        torch.allclose(a, b, rtol=0, atol=64 * torch.finfo(b.dtype).eps * float(b.abs().max()))
        for a, b in zip(results, expected, strict=True)
        if b.is_floating_point() and b.numel()
    )


def search(kernel: str, start: Tile, within: list[Run], clock: Clock, deadline: float) -> tuple[Tile, float]:
    """The fastest tile on the way from ``start``, and its share of the time of the runs that the kernel is part of."""
    with _triton.choosing({kernel: start}):
        expected = [[result.clone() for result in run()] for run in within]
        before = [clock(run) for run in within]

    def share(tile: Tile) -> float:
        total = 0.0
        try:
            with _triton.choosing({kernel: tile}):
                for run, results, milliseconds in zip(within, expected, before, strict=True):
                    if not _same(run(), results):
                        return float("inf")
                    total += clock(run) / milliseconds
        except Exception:  # what a compiler raises is of every kind, and means the same here
            return float("inf")
        return total / len(within)

    best, least, seen = start, 1.0, [start]
    while True:
        found: list[tuple[float, Tile]] = []
        for tile in neighbours(best):
            if tile not in seen and time.monotonic() < deadline:
                seen.append(tile)
                found.append((share(tile), tile))
        fastest, tile = min(found, key=lambda pair: pair[0], default=(float("inf"), best))
        if fastest >= GAIN * least:
            return best, least
        best, least = tile, fastest


def save(kernel: str, architecture: str, case: str, tile: Tile) -> None:
    """Adds a tile to the user's table, which is replaced as a whole.

    Raises:
        ValueError: there is a table, but it cannot be read; names the file.
    """
    path = _triton.user_table()
    try:
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        content.setdefault(kernel, {}).setdefault(architecture, {})[case] = tile
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a table of tiles ({error}); delete it and run skelops tune again") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as file:
        file.write_text(json.dumps(content, indent=1) + "\n")
    _triton.table.cache_clear()
    _triton.tile.cache_clear()


def tune(op: str, device: torch.device, clock: Clock, deadline: float) -> None:
    """Tunes the kernels of an op, saves each as it is found, and prints a line about it."""
    architecture = _triton.architecture(device)
    done: set[tuple[str, str]] = set()
    for dtype in DTYPES:
        with torch.device(device), skelops.backend("triton"):
            uses: dict[tuple[str, str], list[Run]] = {}
            tiles: dict[tuple[str, str], Tile] = {}
            for run in chain.from_iterable(map(runs, CALLS[op](dtype))):
                with _triton.choosing({}) as taken:
                    run()
                tiles |= taken
                for key in taken:
                    uses.setdefault(key, []).append(run)
            for kernel, case in sorted(uses.keys() - done):
                if time.monotonic() >= deadline:
                    return
                start = tiles[kernel, case]
                best, share = search(kernel, start, uses[kernel, case], clock, deadline)
                done.add((kernel, case))
                told = "kept"
                if best != start:
                    with user_errors():
                        save(kernel, architecture, case, best)
                    told = f"{100 * share:.0f}% of the time"
                sizes = " ".join(f"{name}={value}" for name, value in best.items())
                print(f"{kernel:<28} {case:<18} {told:<18} {sizes}", flush=True)


def _check(ops: Sequence[str], minutes: float) -> None:
    unknown = sorted(set(ops) - CALLS.keys())
    if unknown:
        raise CommandError(f"expected ops among {', '.join(CALLS)}, got {', '.join(unknown)}")
    if not minutes > 0:
        raise CommandError(f"--minutes: expected a number above zero, got {minutes:g}")
    if not torch.cuda.is_available():
        raise CommandError(f"expected a CUDA device, torch {torch.__version__} finds none")
    if reason := _triton.missing():
        raise CommandError(reason)
    if _triton.interpreted():
        raise CommandError("expected TRITON_INTERPRET to be unset")


def main(ops: Sequence[str], minutes: float) -> None:
    """Runs the command.

    Raises:
        CommandError: an unknown op, no time, no GPU, no Triton, or a table that cannot be read.
    """
    _check(ops, minutes)
    from triton.testing import do_bench

    deadline = time.monotonic() + 60 * minutes
    device = torch.device("cuda", torch.cuda.current_device())
    clock = partial(do_bench, warmup=5, rep=30, return_mode="median")
    with user_errors():
        _triton.table()
    print(f"{torch.cuda.get_device_name()} ({_triton.architecture(device)}); table: {_triton.user_table()}")
    for op in ops or CALLS:
        tune(op, device, clock, deadline)
    if time.monotonic() >= deadline:
        print("the time is over: what was not reached keeps its tiles")
