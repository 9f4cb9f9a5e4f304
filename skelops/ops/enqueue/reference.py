"""enqueue_ in eager PyTorch, without reading the pointer on the host."""

from __future__ import annotations

import torch
from torch import Tensor


def enqueue_(queue: Tensor, keys: Tensor, pointer: Tensor) -> None:
    Q, n = queue.shape[0], keys.shape[0]
    if Q == 0:
        return
    dropped = max(0, n - Q)
    slots = (pointer.reshape(1) + torch.arange(dropped, n, device=queue.device)) % Q
    queue.index_copy_(0, slots, keys[dropped:].to(queue.dtype))
    pointer.add_(n).remainder_(Q)
