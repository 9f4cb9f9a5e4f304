"""NT-Xent within clips: two sets of tokens of a clip are contrasted, pair after pair of sets, no logits stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

from torch import Tensor

from skelops._checks import Shapes, has_width, positive
from skelops._op import Op
from skelops.ops.nt_xent import reference
from skelops.ops.queue_attention.reference import working_dtype


def nt_xent(tokens: Tensor, pairs: Sequence[tuple[int, int]], temperature: float = 0.07) -> Tensor:
    """NT-Xent between the tokens of each clip, for pairs of token sets (two streams, views or branches of the clip).

    For a pair (a, b) and a clip n, F are the rows of ``tokens[a, n]`` and then those of ``tokens[b, n]``, 2P in all, at
    unit length (as torch.nn.functional.normalize brings them), and token i' = (i + P) mod 2P is the partner of i::

        s_ij       = F_i . F_j / temperature
        loss[a, b] = 1 / (2 P N) sum_n sum_i ( log sum_{j != i} exp(s_ij) - s_ii' )

    The negatives of a token are the other tokens of its own clip in both sets. The loss is symmetric, and every token
    has a gradient: nothing is detached.

    All pairs share one call: a set that is in several is normalised and multiplied with itself once. Computed in
    float32 (float64 where the tokens have it), also under autocast. There is no double backward.

    Args:
        tokens: S sets of P tokens for each of N clips, (S, N, P, D). In a contrast of whole clips, the clips are the
            tokens, and N is 1.
        pairs: G pairs (a, b) of different sets, as indices 0 .. S - 1.
        temperature: above zero.

    Returns:
        The loss of each pair (G,); NaN, as the mean of nothing is, where there is no clip.

    Raises:
        TypeError: ``tokens`` is no float tensor, or ``temperature`` no number.
        ValueError: the shape does not fit or has no token or D = 0, ``pairs`` are not pairs of different sets, or
            ``temperature`` is not above zero.

    The losses between joints, between frames and between clips of SDS-CL (Xu et al., 2023), by its released code.
    """
    shapes = Shapes()
    shapes.check("tokens", tokens, "S N P D")
    has_width("tokens", tokens)
    positive("temperature", temperature)
    S = shapes["S"]
    if not shapes["P"]:
        raise ValueError("tokens: expected at least one in a set, got P=0")
    if not len(pairs):
        raise ValueError("pairs: expected at least one, got none")
    for pair in pairs:
        if not _is_pair(pair, S):
            raise ValueError(f"pairs: expected pairs of different sets among the {S} of tokens, got {pair!r}")
    return _op(tokens, [int(index) for pair in pairs for index in pair], float(temperature))[0]


def _is_pair(pair: Any, S: int) -> bool:
    """Whether it names two different sets among S."""
    if not isinstance(pair, tuple | list) or len(pair) != 2 or pair[0] == pair[1]:
        return False
    return all(isinstance(index, SupportsIndex) and 0 <= int(index) < S for index in pair)


def _outputs(tokens: Tensor, pairs: list[int], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; most and log(total) of each token in each pair, its denominator being exp(most / temperature) total."""
    (_, N, P, _), G, dtype = tokens.shape, len(pairs) // 2, working_dtype(tokens)
    most, log_total = (tokens.new_empty(G, 2, N, P, dtype=dtype) for _ in range(2))
    return tokens.new_empty(G, dtype=dtype), most, log_total


def _backward_outputs(
    grad: Tensor, tokens: Tensor, most: Tensor, log_total: Tensor, pairs: list[int], temperature: float
) -> Tensor:
    return tokens.new_empty(tokens.shape)


_op = Op(
    "nt_xent(Tensor tokens, int[] pairs, float temperature) -> (Tensor, Tensor, Tensor)",
    reference=reference.nt_xent,
    outputs=_outputs,
)
_op_backward = Op(
    "nt_xent_backward(Tensor grad, Tensor tokens, Tensor most, Tensor log_total, int[] pairs, float temperature)"
    " -> Tensor",
    reference=reference.nt_xent_backward,
    outputs=_backward_outputs,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, *ctx.options = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(tokens, *output[1:])


def _backward(ctx: Any, grad: Tensor | None, *unused: None) -> tuple[Tensor | None, None, None]:
    return None if grad is None else _op_backward(grad, *ctx.saved_tensors, *ctx.options), None, None


_op.differentiable(_setup_context, _backward)
_op_backward.not_differentiable()
