"""The pooling modules: what they pass on to the ops, and what they refuse."""

from __future__ import annotations

import pytest
import torch

import skelops
from skelops.nn.pooling import MaskPool, SqueezePool


def test_squeeze_pool() -> None:
    x, lengths = torch.randn(4, 3, 5, 25), torch.tensor([5, 2, 0, 1])
    for result, expected in zip(SqueezePool(bodies=2)(x, lengths), skelops.squeeze_pool(x, lengths, 2), strict=True):
        assert torch.equal(result, expected)
    assert SqueezePool()(x).mean.shape == (4, 3)
    assert repr(SqueezePool(2)) == "SqueezePool(bodies=2)"


@pytest.mark.parametrize("divide_by", ["mask", "size"])
def test_mask_pool(divide_by: str) -> None:
    x, mask = torch.randn(4, 3, 5, 25), torch.rand(5, 25) > 0.5
    for result, expected in zip(MaskPool(divide_by)(x, mask), skelops.mask_pool(x, mask, divide_by), strict=True):
        assert torch.equal(result, expected)
    assert repr(MaskPool(divide_by)) == f"MaskPool(divide_by={divide_by!r})"


def test_modules_train_and_compile() -> None:
    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.squeeze, self.pool = torch.nn.Conv2d(3, 8, 1), SqueezePool(2), MaskPool()

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.squeeze(y).mean.sum() + (self.pool(y, mask).inside ** 2).sum()

    head, x, mask = Head(), torch.randn(4, 3, 5, 25), torch.rand(2, 5, 25) > 0.5
    results = []
    for module in (head, torch.compile(head, fullgraph=True, backend="aot_eager")):
        loss = module(x, mask)
        results.append([loss, *torch.autograd.grad(loss, list(head.parameters()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    assert not list(SqueezePool().state_dict())
    assert not list(MaskPool().state_dict())


def test_bad_arguments() -> None:
    for bodies in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"bodies: expected a positive integer, got {bodies}"):
            SqueezePool(bodies)
    with pytest.raises(ValueError, match="divide_by: expected one of 'mask', 'size', got 'sum'"):
        MaskPool("sum")
