"""channel_graph_conv in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from skelops._stats import with_stats_gradient, with_sums


def _differences(query: Tensor, key: Tensor) -> Tensor:
    """(B, K, R, V, V), from source v to target w."""
    return torch.tanh(query[..., None, :] - key[..., :, None])


def _topology(differences: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, adjacency: Tensor) -> Tensor:
    """(B, K, C, V, V)."""
    learned = torch.einsum("kcr,bkrvw->bkcvw", weight, differences) + bias[..., None, None]
    return alpha * learned + adjacency[:, None]


def channel_graph_conv(
    x: Tensor,
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    bias: Tensor,
    alpha: Tensor,
    adjacency: Tensor,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    topology = _topology(_differences(query, key), weight, bias, alpha, adjacency)
    y = torch.einsum("bkctv,bkcvw->bctw", x.unflatten(1, bias.shape), topology)
    return with_sums(y, stats)


def channel_graph_conv_backward(
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
    grad = with_stats_gradient(grad, y, grad_sum, grad_square_sum)
    differences = _differences(query, key)
    grad_x = x.new_empty(0)
    if needs_x:
        topology = _topology(differences, weight, bias, alpha, adjacency)
        grad_x = torch.einsum("bctw,bkcvw->bkctv", grad, topology).flatten(1, 2)
    if not needs_topology:
        return grad_x, *(x.new_empty(0) for _ in range(6))
    of_topology = torch.einsum("bkctv,bctw->bkcvw", x.unflatten(1, bias.shape), grad)
    of_weight = torch.einsum("bkcvw,bkrvw->kcr", of_topology, differences)
    of_bias = of_topology.sum((0, 3, 4))
    of_differences = alpha * torch.einsum("kcr,bkcvw->bkrvw", weight, of_topology) * (1 - differences.square())
    return (
        grad_x,
        of_differences.sum(3),
        -of_differences.sum(4),
        alpha * of_weight,
        alpha * of_bias,
        ((of_weight * weight).sum() + (of_bias * bias).sum()).reshape(1),
        of_topology.sum((0, 2)),
    )
