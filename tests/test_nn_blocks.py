"""The blocks that encoders are made of: batches without a sample, and sizes that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from skelops.nn import (
    AdaptiveGraphConv,
    BatchNormAct2d,
    ChannelGraphConv,
    GraphConv,
    HopAttention,
    JointAttentionBlock,
    MultiScaleTemporalConv,
    STGCNBlock,
    TemporalConv,
)

V = 5
EDGES = torch.rand(3, V, V)
HOPS, PARTS = torch.arange(V * V).view(V, V) % 3, torch.arange(V) % 2


class WithGraph(nn.Module):
    """A block that is given its adjacency."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, EDGES)


#: Blocks of 8 to 24 channels.
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "AdaptiveGraphConv": lambda: AdaptiveGraphConv(8, 24, EDGES),
    "BatchNormAct2d": lambda: BatchNormAct2d(8),
    "ChannelGraphConv": lambda: ChannelGraphConv(8, 24, EDGES),
    "GraphConv": lambda: WithGraph(GraphConv(8, 24, 3)),
    "HopAttention": lambda: HopAttention(8, 24, 4, HOPS, PARTS),
    "JointAttentionBlock": lambda: JointAttentionBlock(8, 24, 6, V),
    "MultiScaleTemporalConv": lambda: MultiScaleTemporalConv(8, 24),
    "STGCNBlock": lambda: WithGraph(STGCNBlock(8, 24, 3, dropout=0.5)),
    "TemporalConv": lambda: TemporalConv(8, 24, 9),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_batch_without_a_sample(name: str, training: bool) -> None:
    block = BLOCKS[name]().train(training)
    buffers = {key: value.clone() for key, value in block.named_buffers() if "num_batches" not in key}
    x = torch.randn(0, 8, 6, V).requires_grad_()
    y = block(x)
    y = y if isinstance(y, Tensor) else y.map
    assert y.shape == (0, 8 if name == "BatchNormAct2d" else 24, 6, V)
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    for parameter in block.parameters():
        assert parameter.grad is None or not parameter.grad.any()
    for key, value in buffers.items():
        assert torch.equal(block.get_buffer(key), value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(STGCNBlock, 8, 24, 3, 4), "kernel_size: expected 1, 3, 5, 7 or 9 frames, got 4"),
        (partial(STGCNBlock, 8, 24, 3, 11), "kernel_size: expected 1, 3, 5, 7 or 9 frames, got 11"),
        (partial(AdaptiveGraphConv, 8, 10, EDGES), "out_channels: expected a multiple of 4, got 10"),
        (partial(HopAttention, 8, 16, 4, HOPS, PARTS), "channels: expected a multiple of 6, got 16"),
        (partial(HopAttention, 8, 24, 5, HOPS, PARTS), "heads: expected a divisor of C=24, got 5"),
    ],
)
def test_sizes_that_do_not_fit(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
