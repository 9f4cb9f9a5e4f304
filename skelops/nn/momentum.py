"""The slowly moving copy of an encoder."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from skelops.ops.ema_update import ema_update_


class MomentumEncoder(nn.Module):
    """A copy of an encoder that follows it as a moving average: MoCo's key encoder (He et al. 2020), an EMA teacher.

    The copy lies in ``self.encoder`` (so its state_dict has the encoder's names after ``encoder.``), its parameters do
    not require grad, and calling the module runs it without gradient. Whether BatchNorm and dropout train is up to
    ``train()`` and ``eval()``, as in any module: MoCo-style methods leave the key encoder in training mode.

    Args:
        encoder: what is copied, with its present weights; copy after the initialisation.
        momentum: share of the old weights that an update keeps, from 0 to 1.
    """

    def __init__(self, encoder: nn.Module, momentum: float = 0.999) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.momentum = momentum

    def update(self, encoder: nn.Module, momentum: float | None = None, buffers: bool = False) -> None:
        """Moves the copy towards ``encoder``: ``weight = momentum * weight + (1 - momentum) * encoder.weight``.

        Args:
            encoder: a module with the parameters of the one that was copied.
            momentum: instead of that of the module, for a schedule.
            buffers: average the buffers (BatchNorm statistics), too; counters are copied.

        Raises:
            ValueError: the names of parameters (or buffers) differ from those of the copy, or a shape, dtype or device
                does.
        """
        targets, sources = _tensors(self.encoder, buffers), _tensors(encoder, buffers)
        if targets.keys() != sources.keys():
            name = sorted(targets.keys() ^ sources.keys())[0]
            place = "the copy" if name in targets else "encoder"
            raise ValueError(
                f"encoder: expected the parameters of the module that was copied; {name!r} is in {place} alone"
            )
        ema_update_(
            targets.values(), (sources[name] for name in targets), self.momentum if momentum is None else momentum
        )

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.encoder(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}"


def _tensors(module: nn.Module, buffers: bool) -> dict[str, Tensor]:
    """Parameters, and buffers if asked for, by name."""
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    return {**tensors, **dict(module.named_buffers())} if buffers else tensors
