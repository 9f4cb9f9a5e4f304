"""aggregate in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _forms(per_subset: bool, sum_subsets: bool, frames: bool) -> tuple[str, str, str]:
    """einsum's letters of x, of the adjacency and of y."""
    x = "bkctv" if per_subset else "bctv"
    y = "bctw" if sum_subsets else "bkctw"
    if not frames:
        return x, "bkctvw", y
    # n is the target frame; the adjacency's axes of channels and frames have size 1.
    return x, "bkijtn", y.replace("tw", "nv")


def _split(x: Tensor, adjacency: Tensor, per_subset: bool) -> Tensor:
    K = adjacency.shape[1]
    return x.unflatten(1, (K, x.shape[1] // K)) if per_subset else x


def aggregate(x: Tensor, adjacency: Tensor, per_subset: bool, sum_subsets: bool, frames: bool) -> Tensor:
    of_x, edges, of_y = _forms(per_subset, sum_subsets, frames)
    y = torch.einsum(f"{of_x},{edges}->{of_y}", _split(x, adjacency, per_subset), adjacency)
    return y if sum_subsets else y.flatten(1, 2)


def aggregate_backward_adjacency(
    grad: Tensor, x: Tensor, adjacency: Tensor, per_subset: bool, sum_subsets: bool, frames: bool
) -> Tensor:
    of_x, edges, of_y = _forms(per_subset, sum_subsets, frames)
    factors = _split(x, adjacency, per_subset), _split(grad, adjacency, not sum_subsets)
    kept = "".join(letter for letter, size in zip(edges[:4], adjacency.shape, strict=False) if size != 1) + edges[4:]
    return torch.einsum(f"{of_x},{of_y}->{kept}", *factors).view(adjacency.shape)
