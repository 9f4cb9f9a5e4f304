"""The contraction under every graph convolution: features of joints (or frames) gathered along an adjacency."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skelops._checks import Shapes, not_empty, one_of, same_device, same_dtype
from skelops._layout import empty_map, is_channels_last
from skelops._op import Op
from skelops.ops.aggregate import reference

AXES = ("kvw", "bkvw", "bkcvw", "bktvw", "bkctvw")


def aggregate(x: Tensor, adjacency: Tensor, *, axes: str, sum_subsets: bool, axis: str = "joints") -> Tensor:
    """Sums the features of source joints (or frames) into target joints, per adjacency subset.

    ::

        y[b,(k),c,t,w] = sum_v x[b,(k),c,t,v] adjacency[(b),k,(c),(t),v,w]       axis="joints"
        y[b,(k),c,s,v] = sum_t x[b,(k),c,t,v] adjacency[(b),k,t,s]               axis="frames"

    summed over k where ``sum_subsets``. ``adjacency[..., v, w]`` carries joint v (source) to joint w (target), and
    there may be another number of targets than of sources. Sums are accumulated in float32 for float32 and 16-bit
    inputs. Both inputs have gradients.

    Args:
        x: features (B, C, T, V) that all subsets share, or (B, K, C, T, V): a (B, K*C, T, V) map with its channels
            split. contiguous or channels_last, also a slice of the channels of a wider channels_last map (other strides
            are copied once); the output and the gradient keep the format.
        adjacency: its axes are those named by ``axes``, such as (B, K, C, V, W) for "bkcvw".
        axes: "kvw", "bkvw", "bkcvw", "bktvw" or "bkctvw"; the first two for frames.
        sum_subsets: whether the subsets are summed.
        axis: "joints" or "frames": what the adjacency relates.

    Returns:
        (B, C, T, W) where subsets are summed, else (B, K, C, T, W), a view of a (B, K*C, T, W) map.

    Raises:
        TypeError: an argument is no floating-point tensor, or the dtypes differ outside autocast.
        ValueError: shapes, axes or devices do not fit together, the features are without channels, frames or joints,
            or the adjacency without subsets.

    ST-GCN (AAAI 2018) "kvw"; 2s-AGCN (CVPR 2019) and DSTA-Net (ACCV 2020) "bkvw"; CTR-GCN (ICCV 2021) and DG-GCN
    "bkcvw"; SGN (CVPR 2020), InfoGCN (CVPR 2022) and Hyperformer "bktvw"; MS-G3D (CVPR 2020) more targets.
    """
    one_of("axes", axes, AXES)
    one_of("axis", axis, ("joints", "frames"))
    frames = axis == "frames"
    if frames and axes not in ("kvw", "bkvw"):
        raise ValueError(f"axes: expected 'kvw' or 'bkvw' with axis='frames', got {axes!r}")
    shapes = Shapes()
    form = shapes.check("x", x, "B C T V", "B K C T V")
    not_empty("x", x)
    shapes.check("adjacency", adjacency, " ".join(axes.replace("vw", "ts" if frames else "vw").upper()))
    if not shapes["K"]:
        raise ValueError(f"adjacency: expected at least one subset, got shape {tuple(adjacency.shape)}")
    same_device(x=x, adjacency=adjacency)
    same_dtype(x=x, adjacency=adjacency)
    for position, axis_name in enumerate("bkct"):
        if axis_name not in axes:
            adjacency = adjacency.unsqueeze(position)
    per_subset = form == "B K C T V"
    if per_subset:
        x = x.flatten(1, 2)
    elif sum_subsets:
        # Subsets of shared features sum like their adjacencies; of one subset, x has an axis of its own.
        adjacency = adjacency.sum(1, keepdim=True)
    single = sum_subsets and not per_subset
    y = _op(x, adjacency, per_subset or single, sum_subsets and per_subset, frames)
    return y if sum_subsets else y.unflatten(1, (shapes["K"], shapes["C"]))


def _outputs(x: Tensor, adjacency: Tensor, per_subset: bool, sum_subsets: bool, frames: bool) -> Tensor:
    B, channels, T, V = x.shape
    K, targets = adjacency.shape[1], adjacency.shape[5]
    C = channels // K if per_subset else channels
    shape = (B, C if sum_subsets else K * C, *((targets, V) if frames else (T, targets)))
    return empty_map(x, shape, is_channels_last(x))


def _backward_outputs(
    grad: Tensor, x: Tensor, adjacency: Tensor, per_subset: bool, sum_subsets: bool, frames: bool
) -> Tensor:
    return adjacency.new_empty(adjacency.shape)


_op = Op(
    "aggregate(Tensor x, Tensor adjacency, bool per_subset, bool sum_subsets, bool frames) -> Tensor",
    reference=reference.aggregate,
    outputs=_outputs,
)
_op_backward = Op(
    "aggregate_backward_adjacency(Tensor grad, Tensor x, Tensor adjacency, bool per_subset, bool sum_subsets,"
    " bool frames) -> Tensor",
    reference=reference.aggregate_backward_adjacency,
    outputs=_backward_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, adjacency, *ctx.form = inputs
    ctx.save_for_backward(x, adjacency)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, adjacency = ctx.saved_tensors
    per_subset, sum_subsets, frames = ctx.form
    if is_channels_last(x) and not is_channels_last(grad):
        grad = grad.contiguous(memory_format=torch.channels_last)
    grad_x = grad_adjacency = None
    if ctx.needs_input_grad[0]:
        # The gradient of x is the same contraction backwards.
        grad_x = _op(grad, adjacency.mT, not sum_subsets, not per_subset, frames)
    if ctx.needs_input_grad[1]:
        grad_adjacency = _op_backward(grad, x, adjacency, per_subset, sum_subsets, frames)
    return grad_x, grad_adjacency, None, None, None


_op.differentiable(_setup_context, _backward)
_op.autocast()
_op_backward.not_differentiable()
