"""Checkpoints of `skelops.methods.training.Training`: reading them and building their encoder."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from skelops.methods.encoders import ENCODERS, Encoder
from torch import nn

REQUIRED = {"encoder", "state_dict", "epoch", "datamodule_hyper_parameters"}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, and its path as ``file``; nothing in the file is executed.

    Raises:
        ValueError: there is no such file, or it is no checkpoint of ``skelops train``; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint: expected a file, found none at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises to load the file unsafely
        raise ValueError(f"checkpoint: {path} cannot be read (it is no file of weights)") from error
    except Exception as error:  # whatever the reader stumbles over: struct.error, IndexError, AssertionError, ...
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"checkpoint: {path} cannot be read ({reason or type(error).__name__})") from error
    if not isinstance(content, dict) or not content.keys() >= REQUIRED:
        raise ValueError(f"checkpoint: {path} was not written by skelops train")
    return {**content, "file": str(path)}


def build_encoder(checkpoint: dict[str, Any]) -> Encoder:
    """An encoder of the checkpoint's kind and hyper-parameters, with weights of its own.

    Raises:
        ValueError: the encoder is unknown here, or its arguments are; names the file.
    """
    file, name, arguments = checkpoint["file"], checkpoint["encoder"]["name"], checkpoint["encoder"]["arguments"]
    if name not in ENCODERS:
        raise ValueError(f"checkpoint: {file}: expected an encoder of {', '.join(ENCODERS)}, got {name!r}")
    build: Callable[..., Encoder] = ENCODERS[name]
    try:
        return build(**arguments)
    except (ValueError, TypeError) as error:
        raise ValueError(f"checkpoint: {file}: {name}: {error}") from error


def load_encoder(checkpoint: dict[str, Any]) -> Encoder:
    """The encoder of a checkpoint, without its projector or classifier, in evaluation mode.

    Raises:
        ValueError: the encoder is unknown here, or the weights do not fit it; names the file.
    """
    encoder = build_encoder(checkpoint)
    prefix = "framework.encoder_q."
    weights = {key.removeprefix(prefix): w for key, w in checkpoint["state_dict"].items() if key.startswith(prefix)}
    weights = {key: w for key, w in weights.items() if not key.startswith("fc.")}
    check_weights(encoder, weights, checkpoint["file"])
    encoder.load_state_dict(weights, strict=False)
    return encoder.eval()


def check_weights(module: nn.Module, weights: dict[str, Any], file: str) -> None:
    """Names and shapes of the weights of a file are those of the module's state_dict.

    Raises:
        ValueError: names the file and the first that differs.
    """
    expected = module.state_dict()
    for key in [*expected, *weights]:
        shapes = [tuple(state[key].shape) if key in state else None for state in (expected, weights)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"checkpoint: the weights of {file} do not fit the configuration: {key}: expected {shapes[0]}, got"
                f" {shapes[1]}"
            )
