"""InfoNCE with its settings held by a module."""

from __future__ import annotations

from torch import Tensor, nn

from skelops._checks import one_of, positive
from skelops.ops.info_nce import InfoNCE, info_nce


class InfoNCELoss(nn.Module):
    """`skelops.info_nce` with fixed temperature, normalisation and reduction.

    Called as the function is, it returns the same: loss, lse and rank.

    Args:
        temperature: above zero.
        normalize: bring query, key and extras to unit length first.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError: ``temperature`` is no number.
        ValueError: ``temperature`` is not above zero, or ``reduction`` is unknown.
    """

    def __init__(self, temperature: float = 0.07, normalize: bool = True, reduction: str = "mean") -> None:
        super().__init__()
        positive("temperature", temperature)
        one_of("reduction", reduction, ("mean", "sum", "none"))
        self.temperature, self.normalize, self.reduction = temperature, normalize, reduction

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        queue: Tensor,
        *,
        extra_positives: Tensor | None = None,
        extra_negatives: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> InfoNCE:
        return info_nce(
            query,
            key,
            queue,
            self.temperature,
            extra_positives=extra_positives,
            extra_negatives=extra_negatives,
            valid=valid,
            normalize=self.normalize,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, normalize={self.normalize}, reduction={self.reduction!r}"
