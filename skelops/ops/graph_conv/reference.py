"""graph_conv in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from skelops._stats import with_stats_gradient, with_sums


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, T, V) -> (B, K, O, T, V): the 1x1 convolution of every subset."""
    K, O, C = weight.shape
    flat_bias = None if bias is None or bias.dim() == 1 else bias.reshape(K * O)
    return conv2d(x, weight.reshape(K * O, C, 1, 1), flat_bias).unflatten(1, (K, O))


def _edges(adjacency: Tensor) -> str:
    return "bkvw" if adjacency.dim() == 4 else "kvw"


def graph_conv(
    x: Tensor, weight: Tensor, adjacency: Tensor, bias: Tensor | None, stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.einsum(f"bkotv,{_edges(adjacency)}->botw", _project(x, weight, bias), adjacency)
    if bias is not None and bias.dim() == 1:
        y = y + bias[:, None, None]
    return with_sums(y, stats)


def graph_conv_backward(
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
    grad = with_stats_gradient(grad, y, grad_sum, grad_square_sum)
    K, O, C = weight.shape
    edges = _edges(adjacency)
    spread_bias = bias is not None and bias.dim() == 2
    spread = torch.einsum(f"botw,{edges}->bkotv", grad, adjacency)
    # What autograd calls for the 1x1 convolution.
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        spread.flatten(1, 2),
        x,
        weight.reshape(K * O, C, 1, 1),
        [K * O] if spread_bias else None,
        *([1, 1], [0, 0], [1, 1], False, [0, 0], 1),  # stride, padding, dilation, transposed, output padding, groups
        [needs_x, needs_weight, needs_bias and spread_bias],
    )
    if needs_bias:
        grad_bias = grad_bias.view(K, O) if spread_bias else grad.sum((0, 2, 3))
    none = x.new_empty(0)
    return (
        grad_x if needs_x else none,
        grad_weight.view(K, O, C) if needs_weight else none,
        torch.einsum(f"bkotv,botw->{edges}", _project(x, weight, bias), grad) if needs_adjacency else none,
        grad_bias if needs_bias else none,
    )
