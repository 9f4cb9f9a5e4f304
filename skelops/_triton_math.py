"""Functions for Triton kernels that its language does not have for every device."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """From the exponential, and near zero, where that cancels, by an odd polynomial (that of the Cephes library)."""
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    square = x * x
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = p * square - 5.37397155531e-2
    p = p * square + 1.33314422036e-1
    p = p * square - 3.33332819422e-1
    return tl.where(size < 0.625, p * square * x + x, tl.where(x < 0.0, -far, far))


@triton.jit
def log1p(x: tl.tensor) -> tl.tensor:
    """log(1 + x) for x of at least 0: the rounding of 1 + x is made up for by the quotient."""
    near = 1.0 + x
    return tl.where(near == 1.0, x, tl.log(near) * (x / tl.where(near == 1.0, 1.0, near - 1.0)))


@triton.jit
def hash_keys(seed: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Two 32-bit keys from a seed in memory: splitmix64."""
    z = tl.load(seed).to(tl.uint64) + 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    return z.to(tl.uint32), (z >> 32).to(tl.uint32)


@triton.jit
def hashed(index: tl.tensor, key0: tl.tensor, key1: tl.tensor) -> tl.tensor:
    """Random numbers of 32 bits: `skelops.ops.norm_act.reference.hashes` of an int64 index."""
    h = index.to(tl.uint32) ^ key0
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) + key1 + (index >> 32).to(tl.uint32) * 0x9E3779B9
    h = h * 0x846CA68B
    return h ^ (h >> 16)
