"""What a benchmark is: one op at one shape, the ways to compute it, and the work that cannot be avoided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: Dtypes of the cases for a GPU.
GPU_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Work:
    """Bytes that must move and floating-point operations that must be done, per pass."""

    bytes: float
    flop: float = 0.0


@dataclass(frozen=True)
class Case:
    """One op at one shape and dtype.

    Attributes:
        op: name of the op.
        name: the shape and form, as words: ``"B=64 C=64 T=50 V=25"``.
        dtype: dtype of the inputs.
        inputs: makes the arguments on torch's default device; what trains has ``requires_grad``.
        skelops: the fused op on these arguments; returns the tensors that backward starts from.
        eager: the same in the usual style of the field, differentiated by autograd. It is also what torch.compile gets.
        forward: work of the forward pass.
        backward: work of forward and backward together, or None where there is no backward pass.
        others: further implementations, by name.
        compiles: whether torch.compile can compile the eager form for good (not where it reads a tensor on the host).
        headline: whether the row belongs into the README's table.
        whole: for a whole model, given as modules: their parameters are what is differentiated, results are not
            compared (dropout draws its own, and the tests judge), and the row tells which ops its time goes to.
        pass_name: what the pass without backward is: "forward", or the "step" of a training loop.
    """

    op: str
    name: str
    dtype: torch.dtype
    inputs: Callable[[], tuple[Any, ...]]
    skelops: Callable[..., Tensor | tuple[Tensor, ...]]
    eager: Callable[..., Tensor | tuple[Tensor, ...]]
    forward: Work
    backward: Work | None = None
    others: dict[str, Callable[..., Any]] = field(default_factory=dict)
    compiles: bool = True
    headline: bool = False
    whole: bool = False
    pass_name: str = "forward"
