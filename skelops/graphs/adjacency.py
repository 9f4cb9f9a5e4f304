"""Adjacency matrices of a joint layout."""

from collections.abc import Callable

import torch
from torch import Tensor

from .layouts import Layout, get_layout


def _normalize(matrix: Tensor) -> Tensor:
    """Divide each column by its sum; empty columns stay zero."""
    return matrix / matrix.sum(0).clamp(min=1)


def _inward(layout: Layout) -> Tensor:
    """Binary (V, V) with a one from every parent (row) to its child (column)."""
    matrix = torch.zeros(layout.num_joints, layout.num_joints)
    child, parent = torch.tensor(layout.edges).T
    matrix[parent, child] = 1
    return matrix


def _with_self(layout: Layout) -> Tensor:
    inward = _inward(layout)
    return _normalize(inward + inward.T + torch.eye(layout.num_joints))


def _agcn(layout: Layout) -> Tensor:
    inward = _inward(layout)
    return torch.stack([torch.eye(layout.num_joints), _normalize(inward), _normalize(inward.T)])


def _spatial(layout: Layout) -> Tensor:
    full = _with_self(layout)
    # The released graph looks one hop far, so every joint beyond the centre's neighbours is equally far from it.
    to_center = torch.full((layout.num_joints,), 2.0)
    to_center[full[:, layout.center] > 0] = 1
    to_center[layout.center] = 0
    eye = torch.eye(layout.num_joints, dtype=torch.bool)
    farther = to_center[:, None] < to_center[None, :]
    return torch.stack([full * eye, full * ~eye * ~farther, full * farther])


def _uniform(layout: Layout) -> Tensor:
    return _with_self(layout)[None]


def _distance(layout: Layout) -> Tensor:
    full = _with_self(layout)
    itself = torch.diag(full.diagonal())
    return torch.stack([itself, full - itself])


STRATEGIES: dict[str, Callable[[Layout], Tensor]] = {
    "agcn": _agcn,
    "spatial": _spatial,
    "uniform": _uniform,
    "distance": _distance,
}


def adjacency(layout: str | Layout, strategy: str = "agcn") -> Tensor:
    """Adjacency of a joint layout, (K, V, V) float32; `adjacency[k, v, w]` carries joint v (source) to w (target).

    Strategies, with column normalisation meaning that what arrives at a joint is an average:

    * "agcn" (K=3; Shi et al., 2s-AGCN, CVPR 2019): identity; inward, a parent's features to its children;
      outward, the children's average to their parent. Each subset is divided by its own column sums.
    * "spatial" (K=3; Yan et al., ST-GCN, AAAI 2018): joint plus neighbours, column-normalised as a whole, then
      split into the joint itself / neighbours as far from the centre or farther / neighbours nearer to the centre.
      As in the released graph, distances beyond one hop from the centre count as equal.
    * "distance" (K=2): the same matrix split into the joint itself / its neighbours.
    * "uniform" (K=1): the same matrix in one piece.

    Raises:
        ValueError: unknown layout or strategy; the message lists the known ones.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    return STRATEGIES[strategy](get_layout(layout))


def hops(layout: str | Layout) -> Tensor:
    """Edges between every two joints of a layout along its tree, (V, V) int64.

    Raises:
        ValueError: unknown layout.
    """
    inward = _inward(get_layout(layout))
    neighbours = inward + inward.T
    reached = torch.eye(len(neighbours))
    distance = torch.zeros(reached.shape, dtype=torch.int64)
    while (reached == 0).any():
        distance += reached == 0
        reached = reached + reached @ neighbours
    return distance
