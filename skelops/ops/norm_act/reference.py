"""norm_act in eager PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def _mixed(seed: Tensor) -> tuple[Tensor, Tensor]:
    """Two 32-bit keys from a seed: splitmix64, so that neighbouring seeds have nothing in common."""
    z = seed.reshape(()) - 0x61C8864680B583EB
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    return z & _LOW, (z >> 32) & _LOW


def hashes(index: Tensor, seed: Tensor) -> Tensor:
    """Random numbers of 32 bits: a hash of each index (int64) and a seed.

    ::

        h  = low(index) ^ key0;  h ^= h >> 16;  h *= 0x7feb352d;  h ^= h >> 15
        h += key1 + high(index) * 0x9e3779b9;   h *= 0x846ca68b;  h ^= h >> 16     (32 bits)

    The multipliers are those of the low-bias hash of C. Wellons, "Prospecting for Hash Functions".
    """
    key0, key1 = _mixed(seed)
    h = (index & _LOW) ^ key0
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & _LOW
    h = (h ^ (h >> 15)) + key1 + (index >> 32) * 0x9E3779B9
    h = ((h & _LOW) * 0x846CA68B) & _LOW
    return h ^ (h >> 16)


def kept(shape: Sequence[int], dropout: float, seed: Tensor) -> Tensor:
    """The elements (B, C, T, V) that dropout keeps: where the hash of ((b T + t) V + v) C + c is not below its rate."""
    B, C, T, V = shape
    h = hashes(torch.arange(B * T * V * C, device=seed.device), seed)
    return (h >= dropout * 2**32).view(B, T, V, C).permute(0, 3, 1, 2)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dropped(x: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    if seed is None:
        return x
    return torch.where(kept(x.shape, dropout, seed), x / (1 - dropout), 0)


def _sloped(x: Tensor, negative_slope: float) -> Tensor:
    """The slope times x; zero where the slope is, whatever x."""
    return negative_slope * x if negative_slope else torch.zeros_like(x)


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return _wide(x) * scale[:, None, None] + shift[:, None, None]


def norm_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    residual_shift: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    z = _dropped(_affine(x, scale, shift), dropout, seed)
    if residual is not None:
        if residual_scale is not None and residual_shift is not None:
            residual = _affine(residual, residual_scale, residual_shift)
        z = z + residual
    if negative_slope != 1:
        z = torch.where(z < 0, _sloped(z, negative_slope), z)
    return z.to(x.dtype)


def norm_act_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    needs_x, needs_affine, needs_residual, needs_residual_affine = needs
    grad = _wide(grad)
    if y is not None:
        grad = torch.where(y <= 0, _sloped(grad, negative_slope), grad)
    inner = _dropped(grad, dropout, seed)
    nothing, none = x.new_empty(0), scale.new_empty(0)
    results = [nothing, none, none, nothing, none, none]
    if needs_x:
        results[0] = (inner * scale[:, None, None]).to(x.dtype)
    if needs_affine:
        results[1:3] = (part.sum((0, 2, 3)).to(scale.dtype) for part in (inner * x, inner))
    if needs_residual:
        results[3] = (grad if residual_scale is None else grad * residual_scale[:, None, None]).to(x.dtype)
    if needs_residual_affine:
        assert residual is not None
        results[4:] = (part.sum((0, 2, 3)).to(scale.dtype) for part in (grad * residual, grad))
    return tuple(results)
