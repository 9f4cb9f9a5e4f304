"""Graph convolution: 1x1 convolution per adjacency subset, aggregated over joints, in one pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from skelops._checks import Shapes, has_elements, not_empty, same_device, same_dtype
from skelops._layout import empty_map, is_channels_last
from skelops._op import Op
from skelops._stats import MapStats, empty_sums, used_sums
from skelops.ops.graph_conv import reference


def graph_conv(
    x: Tensor, weight: Tensor, adjacency: Tensor, bias: Tensor | None = None, *, stats: bool = False
) -> Tensor | MapStats:
    """Graph convolution over joints, with one weight matrix per adjacency subset.

    ::

        y[b,o,t,w] = sum_k sum_v (sum_c weight[k,o,c] x[b,c,t,v] + bias[k,o]) adjacency[(b),k,v,w]

    ``adjacency[..., v, w]`` carries joint v (source) to joint w (target). Sums are accumulated in float32
    for float32 and bfloat16. Every input has a gradient; the map between projection and aggregation is never stored.

    Args:
        x: feature map (B, C, T, V), contiguous or channels_last, also as a slice of the channels of a channels_last map
            (other strides are copied once); the output and the gradient keep the format.
        weight: (K, O, C).
        adjacency: (K, V, V) shared by the batch, or (B, K, V, V) per sample.
        bias: (K, O), added before the aggregation as in the formula; (O,), added to y instead, as in 2s-AGCN and
            DSTA-Net; or None.
        stats: also return the sum and the sum of squares of every output channel in float64, from the same pass: what
            BatchNorm needs. Both are differentiable; their gradients join that of the map while it is read.

    Returns:
        y (B, O, T, V) in the dtype of ``x``, or `MapStats`.

    Raises:
        TypeError: an argument is no floating-point tensor, or the dtypes differ outside autocast.
        ValueError: shapes or devices do not fit together, the map is without channels, frames or joints, or the
            weight without elements.

    ST-GCN, "Spatial Temporal Graph Convolutional Networks for Skeleton-Based Action Recognition" (AAAI 2018),
    equation 10 (released as ConvTemporalGraphical), and the aggregation of 2s-AGCN and DSTA-Net.
    """
    shapes = Shapes()
    shapes.check("x", x, "B C T V")
    not_empty("x", x)
    shapes.check("weight", weight, "K O C")
    has_elements("weight", weight)
    shapes.check("adjacency", adjacency, "K V V", "B K V V")
    if bias is not None:
        shapes.check("bias", bias, "K O", "O")
    same_device(x=x, weight=weight, adjacency=adjacency, bias=bias)
    same_dtype(x=x, weight=weight, adjacency=adjacency, bias=bias)
    output, total, square_sum = _op(x, weight, adjacency, bias, stats)
    return MapStats(output, total, square_sum) if stats else output


def _outputs(
    x: Tensor, weight: Tensor, adjacency: Tensor, bias: Tensor | None, stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    B, _, T, V = x.shape
    O = weight.shape[1]
    y = empty_map(x, (B, O, T, V), is_channels_last(x))
    return y, *empty_sums(y, stats)


def _backward_outputs(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    adjacency: Tensor,
    bias: Tensor | None,
    y: Tensor | None,
    grad_sum: Tensor | None,
    grad_square_sum: Tensor | None,
    needs_x: bool,
    needs_weight: bool,
    needs_adjacency: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def like(tensor: Tensor | None, needed: bool) -> Tensor:
        return x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape if needed else 0)

    grad_x = empty_map(x, x.shape, is_channels_last(x)) if needs_x else x.new_empty(0)
    return grad_x, like(weight, needs_weight), like(adjacency, needs_adjacency), like(bias, needs_bias)


def _many_joints(x: Tensor, *others: Any) -> bool:
    """More joints than the Triton kernels hold in registers: the windows of MS-G3D, on a GPU."""
    return x.shape[3] > 64 and x.device.type == "cuda"


_op = Op(
    "graph_conv(Tensor x, Tensor weight, Tensor adjacency, Tensor? bias, bool stats) -> (Tensor, Tensor, Tensor)",
    reference=reference.graph_conv,
    outputs=_outputs,
    weights=("weight", "bias"),
    eager_wins=_many_joints,
)
_op_backward = Op(
    "graph_conv_backward(Tensor grad, Tensor x, Tensor weight, Tensor adjacency, Tensor? bias, Tensor? y,"
    " Tensor? grad_sum, Tensor? grad_square_sum, bool needs_x, bool needs_weight, bool needs_adjacency,"
    " bool needs_bias) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.graph_conv_backward,
    outputs=_backward_outputs,
    weights=("weight", "bias"),
    eager_wins=_many_joints,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, adjacency, bias, stats = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, adjacency, bias, output[0] if stats else None)


def _backward(
    ctx: Any, grad: Tensor | None, grad_sum: Tensor | None, grad_square_sum: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, weight, adjacency, bias, y = ctx.saved_tensors
    if grad is None:
        grad = x.new_zeros(x.shape[0], weight.shape[1], *x.shape[2:])
    needs = ctx.needs_input_grad[:4]
    of_stats = used_sums(y, grad_sum, grad_square_sum)
    results = _op_backward(grad, x, weight, adjacency, bias, *of_stats, *needs)
    return (*(result if need else None for result, need in zip(results, needs, strict=True)), None)


_op.differentiable(_setup_context, _backward)
_op.autocast()
_op_backward.not_differentiable()
