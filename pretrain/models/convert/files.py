"""Tensors of published checkpoints: safetensors, shards behind an index, and pickles that hold nothing but tensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from shards.errors import UserError

NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
"""What weights are called in published folders, the first found wins."""

INSIDE = ("model", "state_dict", "model_state_dict")
"""Where training scripts put the weights beside the optimizer's state."""


def read_tensors(place: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of the weights file of a folder, by name.

    Raises:
        UserError: nothing there, a damaged file, or a pickle that holds more than data.
    """
    path = weights_file(place)
    if path.name.endswith(".index.json"):
        return _from_index(path)
    return _from_safetensors(path) if path.suffix == ".safetensors" else _unpickled(path)


def weights_file(place: Path) -> Path:
    """The file that holds the weights."""
    if place.is_file():
        return place
    for name in NAMES:
        if (place / name).is_file():
            return place / name
    raise UserError(f"`from` (={place}) holds none of {', '.join(NAMES)}")


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"`from` (={path}) cannot be read: {' '.join(str(error).split())}") from None


def _from_index(path: Path) -> dict[str, Tensor]:
    try:
        parts = json.loads(path.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"`from` (={path}) is not an index of weights: {error}") from None
    found: dict[str, Tensor] = {}
    for name in sorted(set(parts.values())):
        if Path(name).name != name or not (path.parent / name).is_file():
            raise UserError(f"`from` (={path}) names {name}, which is not beside it")
        found |= read_tensors(path.parent / name)
    if missing := sorted(parts.keys() - found.keys()):
        raise UserError(f"`from` (={path}) names {len(missing)} tensors that its files lack (first {missing[0]})")
    return found


def _unpickled(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"`from` (={path}) does not load as plain tensors (`weights_only`): {reason}") from None
    while isinstance(content, Mapping) and (
        inner := [name for name in INSIDE if isinstance(content.get(name), Mapping)]
    ):
        content = content[inner[0]]
    if not isinstance(content, Mapping):
        raise UserError(f"`from` (={path}) holds a {type(content).__name__}, not tensors by name")
    tensors = {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"`from` (={path}) holds no tensors by name")
    return tensors
