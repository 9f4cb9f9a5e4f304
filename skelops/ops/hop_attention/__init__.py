"""Attention over the joints of a frame with keys by hop distance and body part; its scores are never stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skelops._checks import Shapes, divides_channels, not_empty, positive, same_device, same_dtype
from skelops._layout import empty_map, is_channels_last
from skelops._op import Op
from skelops.ops.hop_attention import reference


def hop_attention(
    qkv: Tensor,
    group_key: Tensor,
    hop_key: Tensor,
    group_bias: Tensor,
    static: Tensor,
    alpha: Tensor,
    hops: Tensor,
    groups: Tensor,
    *,
    heads: int,
    scale: float | None = None,
) -> Tensor:
    """Attention among the joints of every frame, by content, hop distance and body part.

    With query, key and value the thirds of the channels of ``qkv``, head h a slice of d channels of each, source joint
    v and target joint w::

        score[b,t,h,v,w] = scale * (query_w . (key_v + hop_key[h, hops[v,w]] + group_key[groups[v]])
                                    + group_bias[h] . group_key[groups[v]])
        A[b,t,h,:,w] = alpha * softmax(score[b,t,h,:,w]) + static[h,:,w]
        y[b,h,:,t,w] = sum_v A[b,t,h,v,w] value[b,h,:,t,v]

    Sums are accumulated in float32 for float32 and 16-bit maps. Nothing but the inputs is kept for backward. Every
    floating-point input has a gradient.

    Args:
        qkv: query, key and value, each with its H*d channels, one after another (B, 3*H*d, T, V); contiguous or
            channels_last, also a slice of the channels of a channels_last map (other strides are copied once). The
            output and the gradient have its format. One map, since one convolution makes all three, and its gradient
            would have to be put together from theirs.
        group_key: keys of the G body parts in every frame, (B, H*d, T, G).
        hop_key: keys by hop distance (H, n_hops, d).
        group_bias: (H, d).
        static: the part of A that is the same for every frame, (H, V, V).
        alpha: weight of the softmax, (1,).
        hops: distance between two joints on the skeleton, (V, V), int64 in 0..n_hops-1.
        groups: body part of every joint, (V,), int64 in 0..G-1.
        heads: H, a divisor of the channels.
        scale: factor of the score; None: ``d ** -0.5``.

    Returns:
        y (B, H*d, T, V) in the dtype of ``qkv``.

    Raises:
        TypeError: a tensor of the wrong kind of dtype, or maps and parameters of different dtypes outside autocast.
        ValueError: shapes or devices do not fit together, or a map is without channels, frames or joints (body parts);
            on the CPU also where ``hops`` or ``groups`` hold a value out of range (outside torch.compile).

    Hyperformer, "Hypergraph Transformer for Skeleton-based Action Recognition" (2022), released as MHSA.
    """
    shapes = Shapes()
    shapes.check("group_key", group_key, "B C T G")
    not_empty("group_key", group_key)
    divides_channels("heads", heads, shapes["C"])
    shapes.sizes |= {"3C": 3 * shapes["C"], "H": heads, "d": shapes["C"] // heads}
    shapes.check("qkv", qkv, "B 3C T V")
    not_empty("qkv", qkv)
    shapes.check("hop_key", hop_key, "H n_hops d")
    shapes.check("group_bias", group_bias, "H d")
    shapes.check("static", static, "H V V")
    shapes.check("alpha", alpha, "1")
    shapes.check("hops", hops, "V V", dtype=torch.int64)
    shapes.check("groups", groups, "V", dtype=torch.int64)
    floats = {
        "qkv": qkv,
        "group_key": group_key,
        "hop_key": hop_key,
        "group_bias": group_bias,
        "static": static,
        "alpha": alpha,
    }
    same_device(**floats, hops=hops, groups=groups)
    same_dtype(**floats)
    _in_range("hops", hops, shapes["n_hops"])
    _in_range("groups", groups, shapes["G"])
    if scale is None:
        scale = shapes["d"] ** -0.5
    positive("scale", scale)
    return _op(*floats.values(), hops, groups, heads, float(scale))


def _in_range(name: str, indices: Tensor, count: int) -> None:
    """Indices are 0..count-1, where asking does not make a GPU wait."""
    if indices.device.type != "cpu" or torch.compiler.is_compiling() or not indices.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(indices))
    if low < 0 or high >= count:
        raise ValueError(f"{name}: expected values in 0..{count - 1}, got {low if low < 0 else high}")


def _outputs(qkv: Tensor, group_key: Tensor, *others: Any) -> Tensor:
    B, C, T, _ = group_key.shape
    return empty_map(qkv, (B, C, T, qkv.shape[3]), is_channels_last(qkv))


def _backward_outputs(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    inputs, needs = args[:6], args[-1]
    return tuple(
        x.new_empty(0) if not need else empty_map(x, x.shape, is_channels_last(x)) if i < 2 else x.new_empty(x.shape)
        for i, (x, need) in enumerate(zip(inputs, needs, strict=True))
    )


def _exceeds_shared_memory(qkv: Tensor, group_key: Tensor, hop_key: Tensor, *others: Any) -> bool:
    """Whether a tile of all joints and all channels of a head, 17 bytes per element, is more than a block of the GPU
    can have: only in float32."""
    if qkv.device.type != "cuda" or qkv.dtype != torch.float32:
        return False
    device = torch.cuda.get_device_properties(qkv.device)
    limit = getattr(device, "shared_memory_per_block_optin", device.shared_memory_per_block)
    joints, channels = (max(16, 1 << (size - 1).bit_length()) for size in (qkv.shape[3], hop_key.shape[2]))
    return 17 * joints * channels > limit


_ARGUMENTS = (
    "Tensor qkv, Tensor group_key, Tensor hop_key, Tensor group_bias, Tensor static, Tensor alpha, Tensor hops,"
    " Tensor groups, int heads, float scale"
)
_op = Op(
    f"hop_attention({_ARGUMENTS}) -> Tensor",
    reference=reference.hop_attention,
    outputs=_outputs,
    eager_wins=_exceeds_shared_memory,
)
_op_backward = Op(
    f"hop_attention_backward(Tensor grad, {_ARGUMENTS}, bool[] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.hop_attention_backward,
    outputs=_backward_outputs,
    eager_wins=lambda grad, *inputs: _exceeds_shared_memory(*inputs),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.heads, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs: Sequence[bool] = list(ctx.needs_input_grad[:6])
    results = _op_backward(grad, *ctx.saved_tensors, ctx.heads, ctx.scale, needs)
    return (*(result if need else None for result, need in zip(results, needs, strict=True)), None, None, None, None)


_op.differentiable(_setup_context, _backward)
_op.autocast(keep=("static", "alpha"))
_op_backward.not_differentiable()
