"""Elements more than 2**31 away from the first: the Triton kernels address them in 64 bits.

Maps whose strides are huge stand for maps that are; memory that is never touched takes none.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import Tensor

import skelops
from skelops import _triton
from skelops.ops.aggregate import reference as aggregate_reference
from skelops.ops.channel_graph_conv import reference as channel_graph_reference
from skelops.ops.graph_conv import reference as graph_reference
from skelops.ops.mask_pool import reference as mask_reference
from skelops.ops.squeeze_pool import reference as squeeze_reference

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(not _triton.interpreted(), reason="for Triton's interpreter, on the CPU")

SHAPE = (3, 3, 3, 5)  # B, C, T, V


@pytest.fixture(params=[0, 1, 2], ids=["rows", "channels", "frames"])
def axis(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The axis whose last element lies 2**31 elements away; maps are taken as they come."""
    for op in ("aggregate", "channel_graph_conv", "graph_conv", "mask_pool", "squeeze_pool"):
        module = importlib.import_module(f"skelops.ops.{op}.triton")
        monkeypatch.setattr(module, "kernel_map", lambda x: (x, False))
    return request.param


def far(axis: int) -> Tensor:
    """A map of SHAPE with a stride of 2**30 along an axis."""
    strides = [45, 15, 5, 1]
    strides[axis] = 2**30
    memory = torch.from_numpy(np.zeros(2**31 + 200, np.float16))
    return memory.as_strided(SHAPE, strides).copy_(torch.randn(SHAPE))


def same(ours: object, theirs: object) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_squeeze_pool(axis: int) -> None:
    x, grad = far(axis), far(axis)
    with skelops.backend("triton"):
        parts = skelops.squeeze_pool(x)
    same(parts, squeeze_reference.squeeze_pool(x.float().half(), None, 1))
    from skelops.ops.squeeze_pool.triton import squeeze_pool_backward

    squeeze_pool_backward(*parts, None, 1, False, [grad])
    same([grad], [squeeze_reference.squeeze_pool_backward(*parts, None, 1, False)])


def test_mask_pool(axis: int) -> None:
    x, mask, grad = far(axis), far(axis), far(axis)
    mask.abs_().clamp_(max=1)
    with skelops.backend("triton"):
        parts = skelops.mask_pool(x, mask)
    same(parts, mask_reference.mask_pool(x, mask, False))
    from skelops.ops.mask_pool.triton import mask_pool_backward, mask_pool_backward_mask

    mask_pool_backward(*parts, mask, False, False, [grad])
    same([grad], [mask_reference.mask_pool_backward(*parts, mask, False, False)])
    arguments = (*parts, *parts, x, mask, False)
    mask_pool_backward_mask(*arguments, [grad])
    same([grad], [mask_reference.mask_pool_backward_mask(*arguments)])


def test_graph_conv(axis: int) -> None:
    x, grad, of_x = far(axis), far(axis), far(axis)
    weight, edges = (torch.randn(size).half() for size in ((2, 3, 3), (2, 5, 5)))
    with skelops.backend("triton"):
        y = skelops.graph_conv(x, weight, edges)
    same([y], graph_reference.graph_conv(x, weight, edges, None, False)[:1])
    from skelops.ops.graph_conv.triton import graph_conv_backward

    outputs = [of_x, torch.empty_like(weight), torch.empty_like(edges), weight.new_empty(0)]
    arguments = (grad, x, weight, edges, None, None, None, None, True, True, True, False)
    graph_conv_backward(*arguments, outputs)
    same(outputs, [part.half() for part in graph_reference.graph_conv_backward(*arguments)])


@pytest.mark.parametrize("frames", [False, True], ids=["joints", "frames"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 1, 3), (3, 3, 1), (3, 3, 3)], ids=["k", "bkt", "bkc", "bkct"])
def test_aggregate(axis: int, sizes: tuple[int, int, int], frames: bool) -> None:
    if frames and sizes != (1, 1, 1):
        pytest.skip("frames have an adjacency of neither channels nor frames")
    x, grad, of_x = far(axis), far(axis), far(axis)
    B, C, T = sizes
    V = 3 if frames else 5
    edges = torch.randn(B, 1, C, T, V, V).half()
    form = (True, False, frames)
    with skelops.backend("triton"):
        y = torch.ops.skelops.aggregate(x, edges, *form)
    same([y], [aggregate_reference.aggregate(x, edges, *form)])
    from skelops.ops.aggregate.triton import aggregate, aggregate_backward_adjacency

    aggregate(grad, edges.mT, *form, [of_x])
    same([of_x], [aggregate_reference.aggregate(grad, edges.mT, *form)])
    of_edges = torch.empty_like(edges)
    aggregate_backward_adjacency(grad, x, edges, *form, [of_edges])
    same([of_edges], [aggregate_reference.aggregate_backward_adjacency(grad, x, edges, *form)])


def test_channel_graph_conv(axis: int) -> None:
    x, grad, y, of_x = far(axis), far(axis), far(axis), far(axis)
    shapes = (3, 1, 2, 5), (3, 1, 2, 5), (1, 3, 2), (1, 3), (1,), (1, 5, 5)
    others = [torch.randn(shape).half() for shape in shapes]
    sums = [torch.randn(3, dtype=torch.float64) for _ in range(2)]
    from skelops.ops.channel_graph_conv.triton import channel_graph_conv, channel_graph_conv_backward

    channel_graph_conv(x, *others, False, [y])
    expected = channel_graph_reference.channel_graph_conv(*(value.float() for value in (x, *others)), False)
    same([y], [expected[0].half()])
    outputs = [of_x, *(torch.empty_like(other) for other in others)]
    channel_graph_conv_backward(grad, x, *others, y, *sums, True, True, outputs)
    wide = [value.float() for value in (grad, x, *others, y)]
    expected = channel_graph_reference.channel_graph_conv_backward(*wide, *sums, True, True)
    same(outputs, [part.half() for part in expected])


@pytest.mark.parametrize("by_dim", [False, True])
def test_enqueue(by_dim: bool) -> None:
    memory = torch.from_numpy(np.zeros(2**31 + 200, np.float16))
    queue = memory.as_strided((20, 3), (1, 2**30)) if by_dim else memory.as_strided((3, 20), (2**30, 1))
    keys, pointer = torch.randn(3, queue.shape[1]).half(), torch.tensor([1])
    with skelops.backend("triton"):
        skelops.enqueue_(queue, keys, pointer)
    rows = [(1 + i) % len(queue) for i in range(3)]
    assert torch.equal(queue[rows], keys)
