"""squeeze_pool in Triton: one program per clip and block of channels reads the map once.

One kernel serves both memory formats by its strides; the tile decides which axis neighbouring threads run along.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from skelops._layout import kernel_map
from skelops._triton import launch, tile


@triton.jit
def _inverse_length(lengths, b, T):
    """Valid frames of row b, and one over their number (0 where there is none)."""
    length = T if lengths is None else tl.minimum(tl.load(lengths + b), T).to(tl.int32)
    return length, tl.where(length > 0, 1.0 / tl.maximum(length, 1).to(tl.float32), 0.0)


@triton.jit
def _forward(
    x, lengths, frames, joints, mean, C, T, V, bodies, stride_b, stride_c, stride_t, stride_v,
    BC: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    v = tl.arange(0, BV)
    channels, joint = c < C, v < V
    c = c.to(tl.int64)
    of_joint = tl.zeros((BC, BV), tl.float32)
    for t0 in range(0, T, BT):
        t = t0 + tl.arange(0, BT)
        of_frame = tl.zeros((BC, BT), tl.float32)
        for m in range(bodies):
            length, inverse = _inverse_length(lengths, n * bodies + m, T)
            here = channels[:, None, None] & (t < length)[None, :, None] & joint[None, None, :]
            at = c[:, None, None] * stride_c + t.to(tl.int64)[None, :, None] * stride_t + v[None, None, :] * stride_v
            # (BC, BT, BV)
            values = tl.load(x + (n * bodies + m) * stride_b + at, mask=here, other=0.0).to(tl.float32)
            of_frame += tl.sum(values, 2)
            of_joint += tl.sum(values, 1) * inverse
        row = (n * C + c) * T
        inside = channels[:, None] & (t < T)[None, :]
        tl.store(frames + row[:, None] + t[None, :], of_frame / (V * bodies), mask=inside)
    row = (n * C + c) * V
    of_joint = of_joint / bodies
    tl.store(joints + row[:, None] + v[None, :], of_joint, mask=channels[:, None] & joint[None, :])
    tl.store(mean + n * C + c, tl.sum(of_joint, 1) / V, mask=channels)


@triton.jit
def _backward(
    frames, joints, mean, lengths, grad, C, T, V, bodies, stride_b, stride_c, stride_t, stride_v,
    BC: tl.constexpr, BT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    n = b // bodies
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    t = tl.program_id(2) * BT + tl.arange(0, BT)
    v = tl.arange(0, BV)
    channels, frame, joint = c < C, t < T, v < V
    c, t = c.to(tl.int64), t.to(tl.int64)
    length, inverse = _inverse_length(lengths, b, T)
    of_frame = tl.load(
        frames + ((n * C + c) * T)[:, None] + t[None, :], mask=channels[:, None] & frame[None, :], other=0.0
    )
    of_joint = tl.load(
        joints + ((n * C + c) * V)[:, None] + v[None, :], mask=channels[:, None] & joint[None, :], other=0.0
    )
    of_all = tl.load(mean + n * C + c, mask=channels, other=0.0).to(tl.float32)
    of_joint = (of_joint.to(tl.float32) + of_all[:, None] / V) * (inverse / bodies)
    of_frame = of_frame.to(tl.float32) / (V * bodies)
    # (BC, BT, BV)
    values = tl.where((t < length)[None, :, None], of_frame[:, :, None] + of_joint[:, None, :], 0.0)
    at = c[:, None, None] * stride_c + t[None, :, None] * stride_t + v[None, None, :] * stride_v
    here = channels[:, None, None] & frame[None, :, None] & joint[None, None, :]
    tl.store(grad + b * stride_b + at, values, mask=here)


def squeeze_pool(x: Tensor, lengths: Tensor | None, bodies: int, outputs: list[Tensor]) -> None:
    x, channels_last = kernel_map(x)
    _, C, T, V = x.shape
    sizes = tile("squeeze_pool", x.device, "channels_last" if channels_last else "default")
    grid = (x.shape[0] // bodies, triton.cdiv(C, sizes["BC"]))
    BV, lengths = triton.next_power_of_2(V), None if lengths is None else lengths.contiguous()
    launch(_forward, grid, x.device, x, lengths, *outputs, C, T, V, bodies, *x.stride(), BV=BV, **sizes)


def squeeze_pool_backward(
    frames: Tensor,
    joints: Tensor,
    mean: Tensor,
    lengths: Tensor | None,
    bodies: int,
    channels_last: bool,
    outputs: list[Tensor],
) -> None:
    (grad,) = outputs
    B, C, T, V = grad.shape
    sizes = tile("squeeze_pool_backward", grad.device, "channels_last" if channels_last else "default")
    grid = (B, triton.cdiv(C, sizes["BC"]), triton.cdiv(T, sizes["BT"]))
    upstream = [part.contiguous() for part in (frames, joints, mean)]
    BV, lengths = triton.next_power_of_2(V), None if lengths is None else lengths.contiguous()
    launch(_backward, grid, grad.device, *upstream, lengths, grad, C, T, V, bodies, *grad.stride(), BV=BV, **sizes)
