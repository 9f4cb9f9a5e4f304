"""Blocks whose backward pass computes again what takes less time than it takes memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def _autocast(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """What makes autocast again what it is now."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    return partial(torch.autocast, device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))


class _Result:
    """A tensor and how to make it again: for the first backward pass that asks, until the last has asked."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self.make, self.users, self.waiting = make, 0, 0
        self.tensor: Tensor | None = make()
        self.autocast = _autocast(self.tensor.device.type)

    def again(self) -> Tensor:
        if self.tensor is None:
            with torch.no_grad(), self.autocast():
                self.tensor, self.waiting = self.make(), self.users
        found, self.waiting = self.tensor, self.waiting - 1
        if not self.waiting:
            self.tensor = None
        return found


class _Saved:
    """A tensor that an op saves for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor
        self.place = tensor.shape, tensor.stride(), tensor.storage_offset()
        self.result: _Result | None = None

    def forget(self, result: _Result) -> None:
        self.tensor, self.result = None, result
        result.users += 1

    def get(self) -> Tensor:
        if self.result is not None:
            return self.result.again().as_strided(*self.place)
        assert self.tensor is not None
        return self.tensor


class _Block:
    """What is saved while a block runs, and what of it can be computed again."""

    def __init__(self) -> None:
        self.results: list[_Result] = []
        self.saved: list[_Saved] = []

    def save(self, tensor: Tensor) -> Tensor | _Saved:
        if tensor.dim() < 2:  # most that is saved are vectors, for which this would take longer than it is worth
            return tensor
        self.saved.append(_Saved(tensor))
        return self.saved[-1]

    def forget(self, output: Tensor) -> None:
        """Forgets the results but the block's output, which whoever comes next saves in any case."""
        for result in self.results:
            tensor, result.tensor = result.tensor, None
            assert tensor is not None
            if not _share(tensor, output):
                for saved in self.saved:
                    if saved.tensor is not None and _share(saved.tensor, tensor):
                        saved.forget(result)
        self.results.clear()
        self.saved.clear()  # autograd keeps this block alive as long as any of its hooks


def _unpack(saved: Tensor | _Saved) -> Tensor:
    return saved if isinstance(saved, Tensor) else saved.get()


_block: ContextVar[_Block | None] = ContextVar("block", default=None)


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether both are of the same memory."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def recompute(block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``block(*inputs)`` that keeps less for its backward pass.

    Of the maps between the layers of a block, those that take little time to compute from what the backward pass needs
    in any case are not kept but computed again: where `AdaptiveGraphConv`, `ChannelGraphConv` and
    `JointAttentionBlock` join a branch and its residual, and embeddings of few channels. The output of the block is
    kept. Gradients are the same to the bit. Other hooks on saved tensors do not see what the block saves;
    torch.compile decides for itself what to keep.

    Args:
        block: a module or function of tensors that returns one.
        inputs: its arguments.

    Returns:
        What the block returns.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return block(*inputs)
    here = _Block()
    token = _block.set(here)
    try:
        with saved_tensors_hooks(here.save, _unpack):
            output = block(*inputs)
    finally:
        _block.reset(token)
    here.forget(output)
    return output


def recomputed(function: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
    """``function(*arguments, **options)``, the same every time: within `recompute` not kept but called again."""
    here = None if torch.compiler.is_compiling() else _block.get()
    if here is None:
        return function(*arguments, **options)
    result = _Result(partial(function, *arguments, **options))
    here.results.append(result)
    assert result.tensor is not None
    return result.tensor
