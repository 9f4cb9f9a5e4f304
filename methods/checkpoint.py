"""Checkpoints of `skelops.methods.training.Training`: reading them and building their encoder."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from skelops.methods.encoders import ENCODERS, Encoder
from torch import nn

#: The first bytes of what torch.save writes.
ARCHIVE = b"PK\x03\x04"
REQUIRED = {"encoder", "state_dict", "epoch", "datamodule_hyper_parameters", "random_state"}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, and its path as ``file``; nothing in the file is executed.

    Raises:
        ValueError: there is no such file, or it is no checkpoint of ``skelops train``; names the file.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint: expected a file, found none at {path}")
    with path.open("rb") as file:
        if file.read(len(ARCHIVE)) != ARCHIVE:
            raise ValueError(f"checkpoint: {path} cannot be read (it is no checkpoint)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises to load the file unsafely
        raise ValueError(f"checkpoint: {path} cannot be read (it holds more than weights)") from error
    except Exception as error:  # whatever the reader stumbles over: struct.error, OSError, AssertionError, ...
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"checkpoint: {path} cannot be read (it is cut off or damaged: {reason or type(error).__name__})"
        ) from error
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


def check_optimizer(optimizer: torch.optim.Optimizer, checkpoint: dict[str, Any]) -> None:
    """A new optimizer is of the kind and the settings of the checkpoint, which would silently replace its own.

    Raises:
        ValueError: names the file and the first setting that differs.
    """
    file, name = checkpoint["file"], type(optimizer).__name__
    if not checkpoint.get("optimizer_states"):
        raise ValueError(f"checkpoint: {file} holds no state of an optimizer, without which no run resumes")
    trained = checkpoint.get("optimizer", name)  # older checkpoints do not name it
    if trained != name:
        raise ValueError(f"model.optimizer: expected {trained} as in {file}, got {name}")
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    for group, before in zip(optimizer.param_groups, groups, strict=False):
        # The schedule moves lr and keeps the base rate as initial_lr.
        settings = {key: value for key, value in before.items() if key not in ("params", "initial_lr")}
        for key, value in {**settings, "lr": before["initial_lr"]}.items():
            if key not in group or group[key] != value:
                raise ValueError(f"model.optimizer: expected {key} {value} as in {file}, got {group.get(key, 'none')}")
