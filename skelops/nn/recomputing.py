"""Blocks whose backward pass computes again what takes less time than it takes memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

R = TypeVar("R")


def _autocast(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """What makes autocast again what it is now."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    return partial(torch.autocast, device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))


class _Read:
    """A tensor as a backward pass will need it."""

    def __init__(self, tensor: Tensor) -> None:
        # An op that saves its own output would be kept alive by what it keeps, had this the gradient function.
        self.tensor, self.version = tensor.detach(), tensor._version

    def get(self) -> Tensor:
        """The tensor; autograd checks for writes only what it keeps itself."""
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"a tensor of shape {tuple(self.tensor.shape)} is at version {self.tensor._version}; "
                f"expected version {self.version}"
            )
        return self.tensor


class _Result:
    """A tensor and how to make it again: for the first backward pass that asks, until the last has asked."""

    def __init__(self, function: Callable[..., Tensor], arguments: tuple[Any, ...]) -> None:
        self.make, self.read = partial(function, *arguments), [_Read(x) for x in _tensors(arguments)]
        self.users = self.waiting = 0
        self.tensor: Tensor | None = self.make()
        self.version = self.tensor._version
        self.autocast = _autocast(self.tensor.device.type)

    def again(self) -> Tensor:
        if self.tensor is None:
            for read in self.read:
                read.get()
            with torch.no_grad(), self.autocast():
                self.tensor, self.waiting = self.make(), self.users
        found, self.waiting = self.tensor, self.waiting - 1
        if not self.waiting:
            self.tensor = None
        return found


class _Saved:
    """A tensor that an op saves for its backward pass, or where it lies in what is computed again."""

    def __init__(self, tensor: Tensor) -> None:
        self.kept: _Read | None = _Read(tensor)
        self.result: _Result | None = None

    def of(self, result: Tensor, version: int) -> bool:
        """Whether it is the result or a part of it, and was not written to before it was saved."""
        return self.kept is not None and self.kept.version == version and _share(self.kept.tensor, result)

    def forget(self, result: _Result) -> None:
        assert self.kept is not None
        tensor, self.kept, self.result = self.kept.tensor, None, result
        self.place = tensor.shape, tensor.stride(), tensor.storage_offset()
        result.users += 1

    def get(self) -> Tensor:
        if self.result is not None:
            return self.result.again().as_strided(*self.place)
        assert self.kept is not None
        return self.kept.get()


class _Block:
    """What is saved while a block runs, and what of it can be computed again."""

    def __init__(self, hooks: ExitStack) -> None:
        self.hooks = hooks
        self.results: list[_Result] = []
        self.saved: list[_Saved] = []

    def run(self, function: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Tensor:
        if not self.results:  # what a block saves before concerns none of them
            self.hooks.enter_context(saved_tensors_hooks(self.save, _Saved.get))
        result = _Result(function, arguments)
        self.results.append(result)
        assert result.tensor is not None
        return result.tensor

    def save(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        if tensor.dim() > 1:  # most that is saved are vectors, for which looking takes longer than it is worth
            self.saved.append(saved)
        return saved

    def forget(self, outputs: Sequence[Tensor]) -> None:
        """Forgets the results but the block's outputs, which whoever comes next saves in any case."""
        for result in self.results:
            tensor, result.tensor = result.tensor, None
            assert tensor is not None
            if not any(_share(tensor, output) for output in outputs):
                for saved in self.saved:
                    if saved.of(tensor, result.version):
                        saved.forget(result)

    def end(self) -> None:
        """Lets go of what it has seen: autograd keeps this block alive as long as any of its hooks."""
        self.results.clear()
        self.saved.clear()


_block: ContextVar[_Block | None] = ContextVar("block", default=None)


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether both are of the same memory; sparse ones have none to tell."""
    strided = one.layout == other.layout == torch.strided
    return strided and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def recompute(block: Callable[..., R], *inputs: Any) -> R:
    """``block(*inputs)`` that keeps less for its backward pass.

    Of the maps between the layers of a block, those that take little time to compute from what the backward pass needs
    in any case are not kept but computed again: where `AdaptiveGraphConv`, `ChannelGraphConv` and
    `JointAttentionBlock` join a branch and its residual, the normalised maps of `HopAttention`, the sums of maps and
    encodings of `JointAttentionBlock`, embeddings of few channels, and features of eight times the channels of what
    they are made of or more. The output of the block is kept. Gradients are the same to the bit. Other hooks on saved
    tensors do not see what the block saves from the first such map on; torch.compile decides for itself what to keep.

    Args:
        block: a module or function of tensors that returns one, or a tuple or list of them.
        inputs: its arguments.

    Returns:
        What the block returns.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return block(*inputs)
    with ExitStack() as hooks:
        here = _Block(hooks)
        hooks.callback(here.end)
        hooks.callback(_block.reset, _block.set(here))
        output = block(*inputs)
        here.forget(list(_tensors([output])))
    return output


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """``function(*arguments)``, which within `recompute` is not kept but called again.

    What it reads is kept, results of other such calls, too.

    Args:
        function: the same every time, of nothing but its arguments.
        arguments: tensors, lists and tuples of them, and numbers; keywords belong into a `functools.partial`.
    """
    here = None if torch.compiler.is_compiling() else _block.get()
    return function(*arguments) if here is None else here.run(function, arguments)
