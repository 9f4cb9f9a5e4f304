"""enqueue_ in Triton: one launch writes the keys, a second advances the pointer that all programs of the first read."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from skelops._triton import launch, tile


@triton.jit
def _write(
    queue, keys, pointer, first, n, Q, D, queue_q, queue_d, keys_n, keys_d, BN: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Keys ``first`` to n - 1, in blocks (BN, BD)."""
    i = first + tl.program_id(0) * BN + tl.arange(0, BN).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD).to(tl.int64)
    # The remainder of a negative number is negative.
    slot = ((tl.load(pointer) % Q + Q) % Q + i) % Q
    here = (i < n)[:, None] & (d < D)[None, :]
    values = tl.load(keys + i[:, None] * keys_n + d[None, :] * keys_d, mask=here)
    tl.store(queue + slot[:, None] * queue_q + d[None, :] * queue_d, values, mask=here)


@triton.jit
def _advance(pointer, n, Q):
    tl.store(pointer, ((tl.load(pointer) % Q + Q) % Q + n) % Q)


def enqueue_(queue: Tensor, keys: Tensor, pointer: Tensor) -> None:
    (Q, D), n = queue.shape, keys.shape[0]
    if Q == 0:
        return
    # Of more keys than slots the last stay: two programs never write the same slot.
    first = max(0, n - Q)
    sizes = tile("enqueue", queue.device, "dims" if queue.stride(1) != 1 else "default")
    grid = (triton.cdiv(n - first, sizes["BN"]), triton.cdiv(D, sizes["BD"]))
    launch(_write, grid, queue.device, queue, keys, pointer, first, n, Q, D, *queue.stride(), *keys.stride(), **sizes)
    launch(_advance, (1,), queue.device, pointer, n, Q, num_warps=1)
