"""Argument checks: errors that name the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

KINDS: dict[str, Callable[[torch.Tensor], bool]] = {
    "float": torch.Tensor.is_floating_point,
    "integer": lambda x: not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool,
    "bool or float": lambda x: x.is_floating_point() or x.dtype == torch.bool,
}


class Shapes:
    """Checks tensors against shapes written as words, and remembers what each letter stood for; a number is that size.

    >>> shapes = Shapes()
    >>> shapes.check("x", x, "B C T V")
    >>> shapes.check("weight", weight, "K O C")  # C must equal that of x
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}

    def __getitem__(self, letter: str) -> int:
        return self.sizes[letter]

    def check(self, name: str, value: Any, *shapes: str, dtype: str | torch.dtype = "float") -> str:
        """Checks a tensor against one of several shapes; returns the one that fits.

        Raises:
            TypeError: not a tensor, or not of the dtype or kind of dtype ("float", "integer", "bool or float").
            ValueError: the shape fits none; the message lists them with the sizes known so far.
        """
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if isinstance(dtype, torch.dtype):
            if value.dtype != dtype:
                raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")
        elif not KINDS[dtype](value):
            raise TypeError(f"{name}: expected a {dtype} tensor, got {value.dtype}")
        found = value.shape
        for shape in shapes:
            letters = shape.split()
            if len(letters) != len(found):
                continue
            sizes = self.sizes.copy()
            for letter, size in zip(letters, found, strict=True):
                if (int(letter) if letter.isdecimal() else sizes.setdefault(letter, size)) != size:
                    break
            else:
                self.sizes = sizes
                return shape
        expected = " or ".join("(" + ", ".join(shape.split()) + ")" for shape in shapes)
        known = ", ".join(f"{k}={v}" for k, v in self.sizes.items() if any(k in shape.split() for shape in shapes))
        raise ValueError(f"{name}: expected shape {expected}{' with ' + known if known else ''}, got {tuple(found)}")


def not_empty(name: str, x: torch.Tensor) -> None:
    """A map (B, C, T, V), or one whose channels are split, has channels, frames and joints. It may have no sample.

    Raises:
        ValueError: it lacks one of them.
    """
    if 0 in x.shape[1:]:
        raise ValueError(f"{name}: expected at least one channel, frame and joint, got shape {tuple(x.shape)}")


def has_elements(name: str, x: torch.Tensor) -> None:
    """A weight has at least one element.

    Raises:
        ValueError: it has none.
    """
    if x.numel() == 0:
        raise ValueError(f"{name}: expected at least one element, got shape {tuple(x.shape)}")


def has_width(name: str, x: torch.Tensor) -> None:
    """Vectors (..., D) have at least one dimension.

    Raises:
        ValueError: D is 0.
    """
    if x.shape[-1] == 0:
        raise ValueError(f"{name}: expected D of at least 1, got shape {tuple(x.shape)}")


def same_device(**tensors: torch.Tensor | None) -> None:
    """All tensors that are given lie on the device of the first.

    Raises:
        ValueError: names the first tensor that lies elsewhere.
    """
    (first, reference), *others = tensors.items()
    assert reference is not None
    for name, tensor in others:
        if tensor is not None and tensor.device != reference.device:
            raise ValueError(f"{name}: expected device {reference.device} as {first}, got {tensor.device}")


def same_dtype(**tensors: torch.Tensor | None) -> None:
    """All tensors that are given have the dtype of the first, unless autocast is about to make it so.

    Raises:
        TypeError: names the first tensor of another dtype.
    """
    (first, reference), *others = tensors.items()
    assert reference is not None
    kind = reference.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return
    for name, tensor in others:
        if tensor is not None and tensor.dtype != reference.dtype:
            raise TypeError(f"{name}: expected {reference.dtype} as {first}, got {tensor.dtype}")


def affine_dtype(x: torch.Tensor, **parts: torch.Tensor | None) -> None:
    """Coefficients of a normalisation of map ``x`` are float32, or float64 for a float64 map, under autocast, too.

    Raises:
        TypeError: names the first of another dtype.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, part in parts.items():
        if part is not None and part.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype} for a map of {x.dtype}, got {part.dtype}")


def one_of(name: str, value: Any, choices: Sequence[Any]) -> None:
    """``value`` is one of ``choices``.

    Raises:
        ValueError: lists the choices.
    """
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def positive(name: str, value: float) -> None:
    """``value`` is a finite number above zero.

    Raises:
        TypeError: not a number.
        ValueError: zero, negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a finite number above zero, got {value}")


def positive_integer(name: str, value: Any) -> None:
    """``value`` is an integer of at least 1.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")


def divides_channels(name: str, value: Any, C: int) -> None:
    """``value`` is a positive integer that divides the channels.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or C % value:
        raise ValueError(f"{name}: expected a divisor of C={C}, got {value!r}")
