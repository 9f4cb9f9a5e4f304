"""Graph convolution with a topology of its own for every channel, built from pooled vectors and never stored."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from skelops._checks import Shapes, not_empty, same_device, same_dtype
from skelops._layout import empty_map, is_channels_last
from skelops._op import Op
from skelops._stats import MapStats, empty_sums, used_sums
from skelops.ops.channel_graph_conv import reference


def channel_graph_conv(
    x: Tensor,
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    bias: Tensor,
    alpha: Tensor,
    adjacency: Tensor,
    *,
    stats: bool = False,
) -> Tensor | MapStats:
    """Graph convolution over joints with one topology per sample, subset and channel.

    ::

        y[b,c,t,w] = sum_k sum_v x[b,k,c,t,v] topology[b,k,c,v,w]
        topology[b,k,c,v,w] = alpha (sum_r weight[k,c,r] tanh(query[b,k,r,w] - key[b,k,r,v]) + bias[k,c]) + adjacency[k,v,w]

    ``adjacency[..., v, w]`` carries joint v (source) to joint w (target). Sums are accumulated in float32 for float32
    and 16-bit inputs. Every input has a gradient; neither the topology nor its gradient is ever stored. (A topology
    that is given is `aggregate` with ``axes="bkcvw"``.)

    Args:
        x: projected features (B, K*C, T, V), the channels of a subset side by side; contiguous or channels_last, also
            a slice of the channels of a wider channels_last map (other strides are copied once). The output and the
            gradient keep the format.
        query: pooled vectors of the target joints (B, K, R, V).
        key: pooled vectors of the source joints (B, K, R, V).
        weight: (K, C, R).
        bias: (K, C).
        alpha: (1,).
        adjacency: (K, V, V).
        stats: also return the sum and the sum of squares of every output channel in float64, from the same pass: what
            BatchNorm needs. Both are differentiable.

    Returns:
        y (B, C, T, V) in the dtype of ``x``, or `MapStats`.

    Raises:
        TypeError: an argument is no floating-point tensor, or the dtypes differ outside autocast.
        ValueError: shapes or devices do not fit together, or the map is without channels, frames or joints.

    CTR-GCN, "Channel-wise Topology Refinement Graph Convolution for Skeleton-Based Action Recognition" (ICCV 2021),
    equations 3 to 6 (released as CTRGC, which contracts over the second index: transpose its adjacency).
    """  # noqa: E501
    shapes = Shapes()
    shapes.check("x", x, "B KC T V")
    not_empty("x", x)
    shapes.check("query", query, "B K R V")
    shapes.check("key", key, "B K R V")
    shapes.check("weight", weight, "K C R")
    shapes.check("bias", bias, "K C")
    shapes.check("alpha", alpha, "1")
    shapes.check("adjacency", adjacency, "K V V")
    if shapes["KC"] != shapes["K"] * shapes["C"]:
        raise ValueError(
            f"x: expected K*C={shapes['K']}*{shapes['C']} channels as weight has, got {shapes['KC']} channels"
        )
    tensors = (x, query, key, weight, bias, alpha, adjacency)
    named = dict(zip(("x", "query", "key", "weight", "bias", "alpha", "adjacency"), tensors, strict=True))
    same_device(**named)
    same_dtype(**named)
    output, total, square_sum = _op(*tensors, stats)
    return MapStats(output, total, square_sum) if stats else output


def _outputs(
    x: Tensor,
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    bias: Tensor,
    alpha: Tensor,
    adjacency: Tensor,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, _, T, V = x.shape
    C = bias.shape[1]
    y = empty_map(x, (B, C, T, V), is_channels_last(x))
    return y, *empty_sums(y, stats)


def _backward_outputs(
    grad: Tensor,
    x: Tensor,
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    bias: Tensor,
    alpha: Tensor,
    adjacency: Tensor,
    y: Tensor | None,
    grad_sum: Tensor | None,
    grad_square_sum: Tensor | None,
    needs_x: bool,
    needs_topology: bool,
) -> tuple[Tensor, ...]:
    grad_x = empty_map(x, x.shape, is_channels_last(x)) if needs_x else x.new_empty(0)
    others = (query, key, weight, bias, alpha, adjacency)
    return grad_x, *(x.new_empty(other.shape if needs_topology else 0) for other in others)


_op = Op(
    "channel_graph_conv(Tensor x, Tensor query, Tensor key, Tensor weight, Tensor bias, Tensor alpha, Tensor adjacency,"
    " bool stats) -> (Tensor, Tensor, Tensor)",
    reference=reference.channel_graph_conv,
    outputs=_outputs,
)
_op_backward = Op(
    "channel_graph_conv_backward(Tensor grad, Tensor x, Tensor query, Tensor key, Tensor weight, Tensor bias,"
    " Tensor alpha, Tensor adjacency, Tensor? y, Tensor? grad_sum, Tensor? grad_square_sum, bool needs_x,"
    " bool needs_topology) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.channel_graph_conv_backward,
    outputs=_backward_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, stats = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[0] if stats else None)


def _backward(
    ctx: Any, grad: Tensor | None, grad_sum: Tensor | None, grad_square_sum: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, y = ctx.saved_tensors
    x, bias = tensors[0], tensors[4]
    if grad is None:
        grad = x.new_zeros(x.shape[0], bias.shape[1], *x.shape[2:])
    needs = ctx.needs_input_grad
    of_stats = used_sums(y, grad_sum, grad_square_sum)
    results = _op_backward(grad, *tensors, *of_stats, needs[0], any(needs[1:7]))
    return (*(result if need else None for result, need in zip(results, needs, strict=False)), None)


_op.differentiable(_setup_context, _backward)
_op.autocast()
_op_backward.not_differentiable()
