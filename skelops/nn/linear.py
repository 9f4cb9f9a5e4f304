"""A linear layer on `skelops.linear`."""

from __future__ import annotations

from torch import Tensor, nn

from skelops.ops.linear import linear


class Linear(nn.Linear):
    """`torch.nn.Linear` with its product by `skelops.linear`, which on some CPUs is twice as fast in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(input, self.weight, self.bias)
