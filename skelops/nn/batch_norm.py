"""BatchNorm as a scale and a shift, and with dropout, residual connection and activation as one module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from skelops._stats import MapStats
from skelops.ops.batch_norm_affine import batch_norm_affine
from skelops.ops.channel_sums import channel_sums
from skelops.ops.norm_act import norm_act

#: A BatchNorm of maps.
Norm = nn.BatchNorm2d | nn.SyncBatchNorm


def uses_batch_statistics(norm: Norm) -> bool:
    """Whether a BatchNorm normalises its next map by that map's own statistics: ``stats`` of the op that makes it."""
    return norm.training or norm.running_mean is None


def alike(norms: Sequence[Norm]) -> bool:
    """Whether BatchNorms side by side, each with its share of the channels, can be computed as one."""

    def kind(norm: Norm) -> tuple[Any, ...]:
        return norm.training, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, _process_group(norm)

    first = norms[0]
    # Without a momentum, the share of a new batch depends on how many each has seen.
    return len(norms) == 1 or (first.momentum is not None and all(kind(norm) == kind(first) for norm in norms))


def scale_shift(x: Tensor | MapStats, *norms: Norm) -> tuple[Tensor, Tensor]:
    """What a BatchNorm does to a map, as ``scale[c] * x + shift[c]``; updates the running statistics in training.

    Args:
        x: the map (B, C, T, V), with the sums of its channels where an op gave them.
        norms: torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm or `BatchNormAct2d`; what comes after its normalisation is
            left out. Of several, which are `alike`, each has its share of the channels, one after the other.

    Returns:
        scale and shift, (C,) float32 (float64 for a float64 map).

    Raises:
        ValueError: the map has other channels than the norms, or training sees one value per channel.
    """
    norm, output = norms[0], x.output if isinstance(x, MapStats) else x
    channels = sum(norm.num_features for norm in norms)
    if output.dim() != 4 or output.shape[1] != channels:
        raise ValueError(f"x: expected shape (B, C={channels}, T, V), got {tuple(output.shape)}")
    dtype = torch.float64 if output.dtype == torch.float64 else torch.float32
    if not uses_batch_statistics(norm):
        scales, shifts = zip(*(_running_scale_shift(norm, dtype) for norm in norms), strict=True)
        return side_by_side(scales), side_by_side(shifts)
    total, square_sum = x[1:] if isinstance(x, MapStats) else channel_sums(x)
    B, _, T, V = output.shape
    count: int | Tensor = B * T * V
    if (group := _process_group(norm)) is not None:
        total, square_sum, count = _over_processes(total, square_sum, B * T * V, group)
    running_means = running_vars = None
    momentum: float | Tensor | None = norm.momentum
    if norm.training and norm.track_running_stats and (batches := norm.num_batches_tracked) is not None:
        tracked: list[Any] = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
        running_means, running_vars, counters = zip(*tracked, strict=True)
        for counter in counters:
            counter.add_(1)
        if momentum is None:
            # The average of all batches; as a tensor, since reading a number on the host waits for the device.
            momentum = batches.to(norm.running_mean).reciprocal()
    return batch_norm_affine(
        total,
        square_sum,
        count,
        side_by_side(norm.weight for norm in norms) if norm.affine else None,
        side_by_side(norm.bias for norm in norms) if norm.affine else None,
        running_means,
        running_vars,
        momentum=0.0 if momentum is None else momentum,
        eps=norm.eps,
        dtype=dtype,
    )


def side_by_side(parts: Iterable[Tensor]) -> Tensor:
    """One tensor of several, one after the other."""
    first, *others = parts
    return torch.cat([first, *others]) if others else first


def _running_scale_shift(norm: Norm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale.to(dtype), (shift if norm.bias is None else shift + norm.bias).to(dtype)


def _process_group(norm: Norm) -> Any:
    """The processes that share their statistics in the next pass; None where there are no others."""
    if not norm.training or not distributed.is_available() or not distributed.is_initialized():
        return None
    group = getattr(norm, "process_group", None)
    if group is None and isinstance(norm, nn.SyncBatchNorm):
        group = distributed.group.WORLD
    return group if group is not None and distributed.get_world_size(group) > 1 else None


def _over_processes(total: Tensor, square_sum: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The sums and the count over all processes; differentiable."""
    from torch.distributed._functional_collectives import all_reduce, wait_tensor

    parts = torch.cat([total, square_sum, total.new_full((1,), count)])
    parts = wait_tensor(all_reduce(parts, "sum", group))
    total, square_sum, elements = parts.split([total.numel(), square_sum.numel(), 1])
    return total, square_sum, elements.detach()


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
            would put a module without activation in the place of this one; blocks of skelops.nn hold plain
            torch.nn.BatchNorm2d, which it may convert.)

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

    def forward(self, x: Tensor | MapStats, residual: Tensor | None = None) -> Tensor:
        """A map (B, C, T, V) and a residual of its shape -> (B, C, T, V).

        The seed of dropout is drawn from torch's generator.
        """
        output = x.output if isinstance(x, MapStats) else x
        dropout = self.dropout if self.training else 0.0
        seed = torch.randint(2**63 - 1, (1,), device=output.device) if dropout else None
        scale, shift = scale_shift(x, self)
        return norm_act(
            output, scale, shift, residual, negative_slope=self.negative_slope, dropout=dropout, seed=seed
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, negative_slope={self.negative_slope}, dropout={self.dropout}"
