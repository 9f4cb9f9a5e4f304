"""The matrix product of `torch.nn.Linear`, for CPUs on which torch's own leaves half of the machine unused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from skelops import _native
from skelops._checks import Shapes, same_device, same_dtype
from skelops._op import Op
from skelops.ops.linear import reference

#: Whether kernels run at the instruction set that has products of bfloat16.
MULTIPLIES_BFLOAT16 = _native.instruction_set() == _native.LEVELS["avx512_bf16"]
#: Elements from which on our products of bfloat16 were measured to win.
LARGE_WEIGHT = 2**20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Applies a weight and a bias to the last axis of a tensor::

        y[..., o] = bias[o] + sum_i x[..., i] weight[o, i]

    On a CPU by kernels of our own in two cases. In float32 torch multiplies with a library that does not use AVX-512 on
    every CPU that has it. Under autocast to bfloat16, on CPUs that multiply that, ours read a float32 weight as it is,
    where torch writes a bfloat16 copy first, and give it a float32 gradient that has not been rounded. Elsewhere
    (tensors of 16 bits, float64, odd sizes under autocast, GPUs) torch's product serves.

    Args:
        x: (..., I), at least one axis.
        weight: (O, I).
        bias: (O,), or None.

    Returns:
        y (..., O) in the dtype of ``x``.

    Raises:
        TypeError: a tensor that is not floating-point, or of another dtype than ``x`` outside autocast.
        ValueError: shapes or devices do not fit together.
    """
    shapes = Shapes()
    shapes.check("weight", weight, "O I")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: expected a float tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
    if not x.dim() or x.shape[-1] != shapes["I"]:
        raise ValueError(f"x: expected shape (..., I) with I={shapes['I']}, got {tuple(x.shape)}")
    if bias is not None:
        shapes.check("bias", bias, "O")
    same_device(x=x, weight=weight, bias=bias)
    same_dtype(x=x, weight=weight, bias=bias)
    if not _has_kernel(x, weight):
        return functional.linear(x, weight, bias)
    rows = x[None] if x.dim() == 1 else x.flatten(0, -2)
    return _op(rows, weight, bias).view(*x.shape[:-1], shapes["O"])


def _has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether our kernels multiply faster than torch's."""
    if x.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    if not torch.is_autocast_enabled("cpu"):
        return True
    # Kernels of bfloat16 take pairs of terms. What they save grows with the weight, what torch's gain with the rows.
    even = x.shape[-1] % 2 == weight.shape[0] % 2 == 0
    fits = even and weight.numel() >= max(LARGE_WEIGHT, x.numel())
    return fits and MULTIPLIES_BFLOAT16 and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _outputs(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _backward_outputs(grad: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor, ...]:
    like = (grad, x.shape), (weight, weight.shape), (weight, weight.shape[:1])
    return tuple(of.new_empty(shape if need else 0) for (of, shape), need in zip(like, needs, strict=True))


_op = Op(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    reference=reference.linear,
    outputs=_outputs,
    weights=("weight", "bias"),
)
_op_backward = Op(
    "linear_backward(Tensor grad, Tensor x, Tensor weight, bool[] needs) -> (Tensor, Tensor, Tensor)",
    reference=reference.linear_backward,
    outputs=_backward_outputs,
    weights=("weight",),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    results = _op_backward(grad, *ctx.saved_tensors, needs)
    return tuple(result if need else None for result, need in zip(results, needs, strict=True))


_op.differentiable(_setup_context, _backward)
_op.autocast()
_op_backward.not_differentiable()
