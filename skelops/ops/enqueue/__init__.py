"""The ring write of a memory queue."""

from __future__ import annotations

import torch
from torch import Tensor

from skelops._checks import Shapes, same_device
from skelops._op import Op
from skelops.ops.enqueue import reference
from skelops.ops.queue_attention import queue_rows


def enqueue_(queue: Tensor, keys: Tensor, pointer: Tensor) -> None:
    """Writes keys into a ring buffer and advances its pointer, both in place.

    With ``p = pointer``: ``queue[(p + i) % Q] = keys[i]`` for i = 0..n-1, then ``pointer = (p + n) % Q``. Any number of
    keys is taken: the write wraps around, and of more than Q keys the last Q stay. The pointer is not read on the host,
    so the op runs inside a CUDA graph. Gradients do not flow through it: keys are taken without their history.

    Args:
        queue: (Q, D), or (D, Q) as MoCo stores it, with any strides; told apart by which axis has length D. A square
            one is taken as (Q, D): pass ``queue.t()`` otherwise.
        keys: (n, D), cast to the dtype of the queue.
        pointer: the next slot, int64, shape () or (1,).

    Raises:
        TypeError: ``queue`` or ``keys`` is no floating-point tensor, or ``pointer`` not int64.
        ValueError: shapes or devices do not fit together, slots of ``queue`` share memory (an expanded tensor), or it
            requires grad.

    MoCo (He et al. 2020), ``_dequeue_and_enqueue``, without its host read and without its condition that n divides Q.
    """
    Shapes().check("keys", keys, "n D")
    rows = queue_rows(queue, keys.shape[1])
    if not isinstance(pointer, Tensor):
        raise TypeError(f"pointer: expected a tensor, got {type(pointer).__name__}")
    if pointer.dtype != torch.int64:
        raise TypeError(f"pointer: expected an int64 tensor, got {pointer.dtype}")
    if pointer.numel() != 1:
        raise ValueError(f"pointer: expected shape () or (1,), got {tuple(pointer.shape)}")
    if 0 in rows.stride() and any(n > 1 and step == 0 for n, step in zip(rows.shape, rows.stride(), strict=True)):
        raise ValueError("queue: expected a tensor of its own memory, got an expanded one whose slots share memory")
    if queue.requires_grad:
        raise ValueError("queue: expected a tensor that does not require grad")
    same_device(queue=queue, keys=keys, pointer=pointer)
    _op(rows, keys.detach() if keys.requires_grad else keys, pointer)


_op = Op(
    "enqueue_(Tensor(a!) queue, Tensor keys, Tensor(b!) pointer) -> ()",
    reference=reference.enqueue_,
    outputs=None,
)
