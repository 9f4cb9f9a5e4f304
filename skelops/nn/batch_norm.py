"""BatchNorm, dropout, residual connection and activation as one module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from skelops._stats import MapStats
from skelops.ops.batch_norm_affine import batch_norm_affine
from skelops.ops.channel_sums import channel_sums
from skelops.ops.norm_act import norm_act


class BatchNormAct2d(nn.BatchNorm2d):
    """``act(dropout(BatchNorm(x)) + residual)`` of feature maps, from one read of each map and one write.

    A `torch.nn.BatchNorm2d` in its parameters, buffers and statistics. These come with a map that an op made with
    ``stats=True``, and are taken from the map else. See `skelops.norm_act`.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as of torch.nn.BatchNorm2d.
        negative_slope: 0 for ReLU, 1 for no activation, between them for LeakyReLU.
        dropout: probability in [0, 1) that an element of the normalised map is zero in training.
        process_group: processes that share their statistics in training, such as ``torch.distributed.group.WORLD``;
            None: every process has its own. May also be set as an attribute. (SyncBatchNorm.convert_sync_batchnorm
            would put a module without activation in the place of this one.)

    Raises:
        ValueError: ``negative_slope`` or ``dropout`` is out of range.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        negative_slope: float = 0.0,
        dropout: float = 0.0,
        process_group: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        if not 0 <= negative_slope < float("inf"):
            raise ValueError(f"negative_slope: expected a number of at least 0, got {negative_slope!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability below 1, got {dropout!r}")
        self.negative_slope, self.dropout, self.process_group = negative_slope, dropout, process_group

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether the next map is normalised by its own statistics: ``stats`` of the op that makes it."""
        return self.training or self.running_mean is None

    def scale_shift(self, x: Tensor | MapStats) -> tuple[Tensor, Tensor]:
        """What normalises a map: ``scale[c] * x + shift[c]``, both (C,); updates the running statistics in training.

        (Not named after the affine map that it is: torch.nn.BatchNorm2d has a flag ``affine``.)
        """
        output = x.output if isinstance(x, MapStats) else x
        if output.dim() != 4 or output.shape[1] != self.num_features:
            raise ValueError(f"x: expected shape (B, C={self.num_features}, T, V), got {tuple(output.shape)}")
        dtype = torch.float64 if output.dtype == torch.float64 else torch.float32
        if not self.uses_batch_statistics:
            return self._running_scale_shift(dtype)
        total, square_sum = x[1:] if isinstance(x, MapStats) else channel_sums(x)
        B, _, T, V = output.shape
        count: int | Tensor = B * T * V
        if self._is_synchronised():
            total, square_sum, count = self._over_processes(total, square_sum, B * T * V)
        running_mean = running_var = None
        momentum: float | Tensor | None = self.momentum
        if self.training and self.track_running_stats and (batches := self.num_batches_tracked) is not None:
            batches.add_(1)
            running_mean, running_var = self.running_mean, self.running_var
            if momentum is None:
                # The average of all batches; as a tensor, since reading a number on the host waits for the device.
                momentum = batches.to(running_mean).reciprocal()
        return batch_norm_affine(
            total,
            square_sum,
            count,
            self.weight,
            self.bias,
            running_mean,
            running_var,
            momentum=0.0 if momentum is None else momentum,
            eps=self.eps,
            dtype=dtype,
        )

    def forward(self, x: Tensor | MapStats, residual: Tensor | None = None) -> Tensor:
        """A map (B, C, T, V) and a residual of its shape -> (B, C, T, V).

        The seed of dropout is drawn from torch's generator.
        """
        output = x.output if isinstance(x, MapStats) else x
        dropout = self.dropout if self.training else 0.0
        seed = torch.randint(2**63 - 1, (1,), device=output.device) if dropout else None
        scale, shift = self.scale_shift(x)
        return norm_act(
            output, scale, shift, residual, negative_slope=self.negative_slope, dropout=dropout, seed=seed
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, negative_slope={self.negative_slope}, dropout={self.dropout}"

    def _running_scale_shift(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None and self.running_var is not None
        scale = (self.running_var.to(dtype) + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -self.running_mean * scale
        return scale.to(dtype), (shift if self.bias is None else shift + self.bias).to(dtype)

    def _is_synchronised(self) -> bool:
        if self.process_group is None or not self.training or not distributed.is_available():
            return False
        return distributed.is_initialized() and distributed.get_world_size(self.process_group) > 1

    def _over_processes(self, total: Tensor, square_sum: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The sums and the count over all processes; differentiable."""
        from torch.distributed._functional_collectives import all_reduce, wait_tensor

        parts = torch.cat([total, square_sum, total.new_full((1,), count)])
        parts = wait_tensor(all_reduce(parts, "sum", self.process_group))
        total, square_sum, elements = parts.split([self.num_features, self.num_features, 1])
        return total, square_sum, elements.detach()
