"""Contrast with a memory bank of all training samples: mined positives and negatives, chosen without a sort."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from skelops._checks import Shapes, has_width, positive, positive_integer, same_device
from skelops._op import Op
from skelops.ops.bank_contrast import reference
from skelops.ops.queue_attention.reference import working_dtype


class BankContrast(NamedTuple):
    """What `bank_contrast` returns.

    Attributes:
        loss: a scalar, the mean over the anchors that are kept; 0 where none is.
        kept: the anchors (N,) that found enough positives and negatives, bool.
    """

    loss: Tensor
    kept: Tensor


def bank_contrast(
    features: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    visited: Tensor,
    seed: Tensor,
    *,
    positives: int = 128,
    hard_negatives: int = 512,
    random_negatives: int = 512,
    temperature: float = 0.8,
) -> BankContrast:
    """The supervised contrast of STD-CL (CSRE) between features and a bank with one slot per training sample.

    With ``s[i, j] = unit(features[i]) . bank[j]``, anchor i looks at the visited slots alone: ``P_i`` are those of its
    class, ``Q_i`` the others. Of these it takes the ``positives`` least similar of ``P_i`` (hard positives), the
    ``hard_negatives`` most similar of ``Q_i``, and ``random_negatives`` of ``Q_i`` drawn without replacement::

        loss = mean over kept i, hard positives p and Omega in {hard negatives of i, random negatives of i} of
               softplus( log sum_{n in Omega} exp(s[i, n] / temperature) - s[i, p] / temperature )

    which is ``-log(e^p / (e^p + sum_n e^n))`` of the released code. An anchor is kept if ``P_i`` and ``Q_i`` have at
    least as many members as are taken from them. The draw is by a hash of seed, anchor and slot (those with the
    smallest one, `skelops.ops.norm_act.reference.hashes` of ``i Q + j``), the same for every backend; of equal
    similarities and equal hashes the lower slot comes first, so that results repeat to the bit.

    The forward pass computes the gradient as well; backward does not look at the bank, which may be overwritten before.
    Computed in float32 (float64 where an input has it), also under autocast. Nothing waits for the device. There is no
    double backward.

    Args:
        features: (N, D), brought to unit length here (as torch.nn.functional.normalize does).
        labels: classes of the features, (N,), int64.
        bank: (Q, D), rows of unit length, taken as they are; no gradient. Write the features of the step before the
            call, as the released code does. Slots that were not visited may hold anything.
        bank_labels: classes of the slots, (Q,), int64.
        visited: slots that hold a feature, (Q,), bool.
        seed: int64 (1,) on the device of ``features``; another one each step.
        positives: hard positives of an anchor, at least 1.
        hard_negatives: hard negatives of an anchor, at least 1.
        random_negatives: random negatives of an anchor, at least 1.
        temperature: above zero.

    Returns:
        `BankContrast`; its loss is differentiable in ``features``.

    Raises:
        TypeError: an argument is no tensor of the expected kind, or ``temperature`` no number.
        ValueError: shapes or devices do not fit together, D is 0, ``temperature`` is not above zero, or a count no
            positive integer.

    STD-CL (arXiv 2312.15144), later CSRE (Pattern Recognition 164:111521, 2025), and its released code.
    """
    shapes = Shapes()
    shapes.check("features", features, "N D")
    has_width("features", features)
    shapes.check("labels", labels, "N", dtype=torch.int64)
    shapes.check("bank", bank, "Q D")
    shapes.check("bank_labels", bank_labels, "Q", dtype=torch.int64)
    shapes.check("visited", visited, "Q", dtype=torch.bool)
    shapes.check("seed", seed, "1", dtype=torch.int64)
    for name, count in (
        ("positives", positives),
        ("hard_negatives", hard_negatives),
        ("random_negatives", random_negatives),
    ):
        positive_integer(name, count)
    positive("temperature", temperature)
    same_device(features=features, labels=labels, bank=bank, bank_labels=bank_labels, visited=visited, seed=seed)
    gradient = torch.is_grad_enabled() and features.requires_grad
    loss, kept, _ = _op(
        features, labels, bank.detach() if bank.requires_grad else bank, bank_labels, visited, seed,
        positives, hard_negatives, random_negatives, float(temperature), gradient,
    )  # fmt: skip
    return BankContrast(loss, kept)


def _outputs(
    features: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    visited: Tensor,
    seed: Tensor,
    positives: int,
    hard_negatives: int,
    random_negatives: int,
    temperature: float,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, which anchors are kept, and the gradient of the features."""
    N, D = features.shape
    dtype = working_dtype(features, bank)
    kept = features.new_empty(N, dtype=torch.bool)
    return features.new_empty((), dtype=dtype), kept, features.new_empty(N if gradient else 0, D, dtype=dtype)


_op = Op(
    "bank_contrast(Tensor features, Tensor labels, Tensor bank, Tensor bank_labels, Tensor visited, Tensor seed,"
    " int positives, int hard_negatives, int random_negatives, float temperature, bool gradient)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.bank_contrast,
    outputs=_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, kept, gradient = output
    ctx.mark_non_differentiable(kept, gradient)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(gradient, inputs[0])


class _Once(torch.autograd.Function):
    """Hands the gradient of the features on; asking for its own gradient is an error, not a silent zero.

    The features are an argument so that the result depends on them.
    """

    @staticmethod
    def forward(gradient: Tensor, features: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("skelops::bank_contrast: double backward is not supported")


def _backward(ctx: Any, loss_gradient: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if loss_gradient is None:
        return (None,) * 11
    gradient, features = ctx.saved_tensors
    return _Once.apply((loss_gradient * gradient).to(features.dtype), features), *(None,) * 10


_op.differentiable(_setup_context, _backward)
