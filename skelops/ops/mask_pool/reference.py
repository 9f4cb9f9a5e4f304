"""mask_pool in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _broadcast(mask: Tensor, B: int, dtype: torch.dtype) -> Tensor:
    """The mask in the dtype of the map, as (1 or B, 1 or C, T, V)."""
    if mask.dim() == 4:
        return mask.to(dtype)
    if mask.dim() == 3:
        mask = mask.repeat_interleave(B // max(len(mask), 1), 0)
    return mask.to(dtype).unsqueeze(-3).reshape(-1, 1, *mask.shape[-2:])


def _divide(total: Tensor, size: Tensor | int) -> Tensor:
    """An empty side is 0; the inner where keeps its gradient from being 0 / 0."""
    if isinstance(size, int):
        return total / size
    return torch.where(size != 0, total / torch.where(size != 0, size, 1), 0)


def _sizes(mask: Tensor, by_size: bool) -> tuple[Tensor | int, Tensor | int]:
    if by_size:
        return mask.shape[2] * mask.shape[3], mask.shape[2] * mask.shape[3]
    return mask.sum((2, 3)), (1 - mask).sum((2, 3))


def mask_pool(x: Tensor, mask: Tensor, by_size: bool) -> tuple[Tensor, Tensor]:
    m = _broadcast(mask, x.shape[0], x.dtype)
    inside, outside = _sizes(m, by_size)
    return _divide((x * m).sum((2, 3)), inside), _divide((x * (1 - m)).sum((2, 3)), outside)


def mask_pool_backward(inside: Tensor, outside: Tensor, mask: Tensor, by_size: bool, channels_last: bool) -> Tensor:
    m = _broadcast(mask, inside.shape[0], inside.dtype)
    inside_size, outside_size = _sizes(m, by_size)
    inside, outside = _divide(inside, inside_size), _divide(outside, outside_size)
    return inside[..., None, None] * m + outside[..., None, None] * (1 - m)


def mask_pool_backward_mask(
    grad_inside: Tensor, grad_outside: Tensor, inside: Tensor, outside: Tensor, x: Tensor, mask: Tensor, by_size: bool
) -> Tensor:
    inside_size, outside_size = _sizes(_broadcast(mask, x.shape[0], x.dtype), by_size)
    grad_inside, grad_outside = _divide(grad_inside, inside_size), _divide(grad_outside, outside_size)
    grad = x * (grad_inside - grad_outside)[..., None, None]
    if not by_size:
        grad = grad + (grad_outside * outside - grad_inside * inside)[..., None, None]
    if mask.dim() == 4:
        return grad
    grad = grad.sum(1)
    return grad.sum(0) if mask.dim() == 2 else grad.unflatten(0, (len(mask), -1)).sum(1)
