"""mask_pool against the masked sums of SkeleMixCLR (a mask for the batch) and SkeAttnCLR (a soft mask per channel)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import skelops
from benchmarks.case import GPU_DTYPES, Case, Work


def by_mask(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return (x * mask).sum((2, 3)) / mask.sum(), (x * (1 - mask)).sum((2, 3)) / (1 - mask).sum()


def by_clip(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    m = mask.repeat_interleave(x.shape[0] // mask.shape[0], 0)[:, None]
    return (x * m).sum((2, 3)) / m.sum((2, 3)), (x * (1 - m)).sum((2, 3)) / (1 - m).sum((2, 3))


def by_size(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return (x * mask).mean((2, 3)), (x * (1 - mask)).mean((2, 3))


def ours_by_size(x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return skelops.mask_pool(x, mask, divide_by="size")


def case(B: int, C: int, T: int, V: int, form: str, layout: str, dtype: torch.dtype, headline: bool = False) -> Case:
    """``form``: "shared" (T, V) or "clips" (B / 2, T, V), both hard, or "channels" (B, C, T, V), soft with gradient."""
    memory_format = getattr(torch, layout)

    def inputs() -> tuple[Tensor, ...]:
        x = torch.randn(B, C, T, V).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        if form == "channels":
            return x, torch.rand(B, C, T, V).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        mask = (torch.rand((T, V) if form == "shared" else (B // 2, T, V)) > 0.3).to(dtype)
        mask[..., 0, 0], mask[..., -1, -1] = 0, 1  # neither side is empty, where eager would give NaN
        return x, mask

    size = torch.finfo(dtype).bits // 8
    elements = B * C * T * V
    mask_elements = {"shared": T * V, "clips": B // 2 * T * V, "channels": elements}[form]
    # The backward pass writes the gradient of x, and reads x again for that of a mask.
    gradients = 4 * elements if form == "channels" else elements + mask_elements
    return Case(
        op="mask_pool",
        name=f"B={B} C={C} T={T} V={V} {form} {layout.removesuffix('_format')}",
        dtype=dtype,
        inputs=inputs,
        skelops=ours_by_size if form == "channels" else skelops.mask_pool,
        eager={"shared": by_mask, "clips": by_clip, "channels": by_size}[form],
        forward=Work(size * (elements + mask_elements), 5 * elements),
        backward=Work(size * (elements + mask_elements + gradients), 10 * elements),
        headline=headline,
    )


def cases(device: str = "cpu") -> Iterator[Case]:
    if device == "cuda":
        for dtype in GPU_DTYPES:
            for layout in ("contiguous_format", "channels_last"):
                contiguous = layout == "contiguous_format"
                yield case(256, 64, 50, 25, "shared", layout, dtype, headline=True)
                yield case(256, 256, 16, 25, "shared", layout, dtype, headline=contiguous)
                yield case(256, 256, 16, 25, "clips", layout, dtype)
                yield case(256, 256, 16, 25, "channels", layout, dtype, headline=contiguous)
                yield case(256, 3, 300, 25, "shared", layout, dtype)
                yield case(64, 64, 300, 25, "clips", layout, dtype)
                yield case(64, 128, 75, 17, "channels", layout, dtype)
                yield case(1, 256, 300, 25, "shared", layout, dtype)
        return
    for dtype in (torch.float32, torch.bfloat16):
        single = dtype == torch.float32
        for layout in ("contiguous_format", "channels_last"):
            first = single and layout == "contiguous_format"
            yield case(256, 64, 50, 25, "shared", layout, dtype, headline=single)
            yield case(256, 256, 16, 25, "shared", layout, dtype, headline=first)
            yield case(256, 256, 16, 25, "clips", layout, dtype)
            yield case(256, 256, 16, 25, "channels", layout, dtype, headline=first)
            yield case(256, 3, 300, 25, "shared", layout, dtype)
            yield case(64, 16, 64, 20, "clips", layout, dtype)
            yield case(16, 128, 75, 17, "channels", layout, dtype)
            yield case(8, 64, 1, 25, "shared", layout, dtype)
            yield case(4, 10, 13, 18, "clips", layout, dtype)
            yield case(1, 256, 300, 25, "shared", layout, dtype)
            yield case(1, 64, 50, 25, "channels", layout, dtype)
            yield case(1, 3, 300, 17, "shared", layout, dtype)
            yield case(1, 3, 1, 17, "shared", layout, dtype)
            yield case(2, 3, 1, 17, "clips", layout, dtype)
