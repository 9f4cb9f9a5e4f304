"""BatchNorm as a scale and a shift per channel, from the sums of the channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skelops._checks import Shapes, same_device
from skelops._op import Op
from skelops.ops.batch_norm_affine import reference


def batch_norm_affine(
    total: Tensor,
    square_sum: Tensor,
    count: int | Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | Sequence[Tensor] | None = None,
    running_var: Tensor | Sequence[Tensor] | None = None,
    *,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """The scale and shift that normalise a map by its own statistics, and the update of the running ones.

    ::

        mean  = total / count,                  variance = square_sum / count - mean^2
        scale = weight / sqrt(variance + eps),  shift    = bias - mean * scale
        running_mean += momentum * (mean - running_mean)
        running_var  += momentum * (variance * count / (count - 1) - running_var)

    as torch.nn.BatchNorm2d does in training. Computed in float64. The sums, ``weight`` and ``bias`` have gradients.

    Args:
        total, square_sum: (C,) float64, as ops with ``stats=True`` and `skelops.channel_sums` give them.
        count: elements per channel, n = B T V; a float64 tensor of one element where the sums come from several
            processes. Without elements the running statistics stay as they are.
        weight, bias: (C,), or None for ones and zeros.
        running_mean, running_var: (C,), written in place; both or none. Several tensors hold the channels one after the
            other, as those of BatchNorms side by side.
        momentum: share of the new statistics, or a tensor of one element of the dtype of ``running_mean``.
        eps: added to the variance.
        dtype: of the results, float32; float64 for a float64 map.

    Returns:
        ``scale``, ``shift`` (C,).

    Raises:
        TypeError: a tensor is of the wrong dtype, or ``dtype`` neither torch.float32 nor torch.float64.
        ValueError: shapes or devices do not fit together, ``count`` is 1, or one of the running statistics is missing.
    """
    means, variances = _as_parts(running_mean), _as_parts(running_var)
    # Called for every normalisation of an encoder: the message is put together where there is one to give.
    if not (_fits(total, square_sum, weight, bias) and _are_parts(total, means) and _are_parts(total, variances)):
        _refuse(total, square_sum, weight, bias, means, variances)
    if (len(means) == 0) != (len(variances) == 0):
        missing = "running_var" if len(means) else "running_mean"
        raise ValueError(f"{missing}: expected both running_mean and running_var or none, got None")
    if dtype is not torch.float32 and dtype is not torch.float64:
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    if isinstance(count, Tensor):
        scale, shift, mean, variance = reference.batch_norm_affine(total, square_sum, count, weight, bias, eps, dtype)
        mean, variance = mean.detach(), variance.detach()
        # Whether there are elements is not read on the host.
        momentum = (count > 0).to(torch.float64) * momentum
    elif count == 1:
        raise ValueError("count: expected more than 1 value per channel in training, got 1")
    else:
        scale, shift, mean, variance = _op(total, square_sum, count, weight, bias, eps, dtype)
    if isinstance(count, Tensor) or count > 0:
        for parts, new in ((means, mean), (variances, variance)):
            _update(parts, new, momentum)
    return scale, shift


def _as_parts(running: Any) -> Sequence[Tensor]:
    return running if isinstance(running, list | tuple) else () if running is None else (running,)


def _update(parts: Sequence[Tensor], new: Tensor, momentum: float | Tensor) -> None:
    """Moves running statistics towards new ones (C,), of which each part has its share."""
    news = new.split([len(part) for part in parts]) if len(parts) > 1 else (new,)
    for part, share in zip(parts, news, strict=False):
        weight = momentum.to(part.dtype) if isinstance(momentum, Tensor) else momentum
        part.lerp_(share if share.dtype == part.dtype else share.to(part.dtype), weight)


def _are_parts(total: Tensor, parts: Sequence[Any]) -> bool:
    """Whether running statistics fit the sums, as far as these are right."""
    channels = 0
    for part in parts:
        if not isinstance(part, Tensor) or part.dim() != 1 or not part.is_floating_point():
            return False
        if part.device != total.device:
            return False
        channels += len(part)
    return len(parts) == 0 or channels == len(total)


def _fits(total: Any, *parts: Any) -> bool:
    if not isinstance(total, Tensor) or total.dtype != torch.float64 or total.dim() != 1:
        return False
    if not isinstance(parts[0], Tensor) or parts[0].dtype != torch.float64:
        return False
    shape, device = total.shape, total.device
    return all(
        part is None
        or (isinstance(part, Tensor) and part.shape == shape and part.device == device and part.is_floating_point())
        for part in parts
    )


def _refuse(
    total: Tensor,
    square_sum: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
) -> None:
    shapes = Shapes()
    for name, part in (("total", total), ("square_sum", square_sum)):
        shapes.check(name, part, "C")
        if part.dtype != torch.float64:
            raise TypeError(f"{name}: expected torch.float64, got {part.dtype}")
    for name, given in (("weight", weight), ("bias", bias)):
        if given is not None:
            shapes.check(name, given, "C")
    same_device(total=total, square_sum=square_sum, weight=weight, bias=bias)
    for name, parts in (("running_mean", means), ("running_var", variances)):
        for part in parts:
            (shapes if len(parts) == 1 else Shapes()).check(name, part, "C")
            same_device(**{"total": total, name: part})
        channels = [len(part) for part in parts]
        if parts and sum(channels) != len(total):
            raise ValueError(f"{name}: expected tensors of C={len(total)} channels together, got {channels}")


class _SumsOp(Op):
    """Sums are float64 whatever the map is: the dtype of the results chooses the backend."""

    def _deciding_kind(self, args: Sequence[Any]) -> tuple[str, torch.dtype]:
        return args[0].device.type, args[-1]


def _outputs(
    total: Tensor,
    square_sum: Tensor,
    count: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scale = total.new_empty(total.shape, dtype=dtype)
    # Half the time of a new_empty that is told a dtype.
    return scale, scale.new_empty(total.shape), scale.new_empty(total.shape), scale.new_empty(total.shape)


def _backward_outputs(
    grad_scale: Tensor,
    grad_shift: Tensor,
    total: Tensor,
    square_sum: Tensor,
    count: int,
    weight: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_weight = total.new_empty(0 if weight is None else weight.shape, dtype=dtype)
    return total.new_empty(total.shape), total.new_empty(total.shape), grad_weight


_op = _SumsOp(
    "batch_norm_affine(Tensor total, Tensor square_sum, SymInt count, Tensor? weight, Tensor? bias, float eps,"
    " ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.batch_norm_affine,
    outputs=_outputs,
)
_op_backward = _SumsOp(
    "batch_norm_affine_backward(Tensor grad_scale, Tensor grad_shift, Tensor total, Tensor square_sum, SymInt count,"
    " Tensor? weight, float eps, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    reference=reference.batch_norm_affine_backward,
    outputs=_backward_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    total, square_sum, ctx.count, weight, bias, ctx.eps, ctx.dtype = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(total, square_sum, weight)


def _backward(
    ctx: Any, grad_scale: Tensor | None, grad_shift: Tensor | None, *unused: Tensor | None
) -> tuple[Tensor | None, ...]:
    total, square_sum, weight = ctx.saved_tensors
    grad_scale, grad_shift = (
        total.new_zeros(total.shape, dtype=ctx.dtype) if g is None else g for g in (grad_scale, grad_shift)
    )
    needs = ctx.needs_input_grad
    gradients: tuple[Tensor | None, ...] = (None, None, None)
    if needs[0] or needs[1] or needs[3]:
        gradients = _op_backward(grad_scale, grad_shift, total, square_sum, ctx.count, weight, ctx.eps, ctx.dtype)
    grad_sum, grad_square_sum, grad_weight = gradients
    return (
        grad_sum if needs[0] else None,
        grad_square_sum if needs[1] else None,
        None,
        None if grad_weight is None or not needs[3] else grad_weight.to(weight.dtype),
        grad_shift.to(ctx.bias_dtype) if needs[4] else None,
        None,
        None,
    )


_op.differentiable(_setup_context, _backward)
_op_backward.not_differentiable()
