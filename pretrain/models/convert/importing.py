"""`pretrain import`: a published checkpoint -> one of ours, whole or not at all.

config.json -> PretrainConfig        tensors -> name table -> model.safetensors        tokenizer.json as it is
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from pretrain.checkpoint import CONFIG, STATE, WEIGHTS
from pretrain.config import PretrainConfig
from pretrain.data.tokenizer import FILE as TOKENIZER
from pretrain.data.tokenizer import Tokenizer
from pretrain.models.convert.files import read_tensors
from pretrain.models.convert.formats import OPEN_CLIP, TRANSFORMERS, Architecture
from pretrain.models.convert.pixels import fold, published_pixels
from pretrain.models.convert.rules import convert
from pretrain.settings import dump_config, merge, parse_config
from pretrain.task import Task
from shards.errors import UserError, nearest
from shards.storage import replace_folder_atomically

Format = Literal["transformers", "open_clip"]
CONFIGS: dict[Format, str] = {"transformers": "config.json", "open_clip": "open_clip_config.json"}


class Imported(NamedTuple):
    """What came of an import: the model's parameters, and the names of ours that started anew."""

    parameters: int
    fresh: list[str]


def import_checkpoint(
    source: Path, kind: str, out: Path, allow: Collection[str], tokenizer: Path | None, overwrite: bool
) -> Imported:
    """Writes the checkpoint folder `out`.

    Args:
        source: A published folder.
        kind: One of `Format`.
        allow: Names of tensors that may be left over or missing.
        tokenizer: Where the tokenizer lies, if not in the folder.

    Raises:
        UserError: a format or architecture that is not known, files that are missing or damaged, or tensors that do
            not fit.
    """
    if kind not in get_args(Format):
        raise UserError(f"`format` (={kind}) must be one of {', '.join(get_args(Format))}")
    if not source.is_dir():
        raise UserError(f"`from` (={source}) is not a folder")
    published = _published(source / CONFIGS[kind])  # type: ignore[index]
    architecture = _architecture(kind, published)
    tensors = {name: tensor.float() for name, tensor in read_tensors(source).items()}
    words = Tokenizer(tokenizer or source)
    config = _config(architecture, published, tensors)
    torch.manual_seed(config.run.seed)  # for what starts anew
    task = Task(config.model, config.objectives, len(words))
    wanted = {name: tensor.shape for name, tensor in task.state_dict().items()}
    made = convert(architecture.table(config.model), tensors, wanted, f"`from` (={source})", allow)
    if pixels := published_pixels(source, published) or architecture.pixels:
        made = fold(made, task.model.vision, pixels)
    task.load_state_dict(made, strict=False)
    task.start_momentum()
    with replace_folder_atomically(out, overwrite, mark=STATE) as folder:
        write_folder(folder, task.state_dict(), config, words)
    return Imported(sum(p.numel() for p in task.model.parameters()), sorted(wanted.keys() - made.keys()))


def write_folder(folder: Path, weights: dict[str, Tensor], config: PretrainConfig, tokenizer: Tokenizer) -> None:
    """A checkpoint of step 0: all that use and fine-tuning need, nothing to resume."""
    save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(dump_config(config))
    tokenizer.save(folder)
    files = {}
    for name in (WEIGHTS, CONFIG, TOKENIZER):
        with (folder / name).open("rb") as file:
            files[name] = hashlib.file_digest(file, "sha256").hexdigest()
    (folder / STATE).write_text(json.dumps({"step": 0, "world": 1, "stream": {}, "files": files}, indent=1))


def _published(file: Path) -> dict[str, Any]:
    try:
        published = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"`from` has no readable {file.name}: {error}") from None
    if not isinstance(published, dict):
        raise UserError(f"`from` (={file}) must hold keys and values")
    return published


def _architecture(kind: str, published: dict[str, Any]) -> Architecture:
    if kind == "open_clip":
        return OPEN_CLIP
    name = str(published.get("model_type"))
    if name not in TRANSFORMERS:
        known = ", ".join(TRANSFORMERS)
        raise UserError(f"`from` has `model_type` (={name}), known are {known}{nearest(name, TRANSFORMERS)}")
    return TRANSFORMERS[name]


def _config(architecture: Architecture, published: dict[str, Any], names: Collection[str]) -> PretrainConfig:
    values = architecture.settings(published, names)
    return parse_config(PretrainConfig, merge(values, {"data": {"tokenizer": TOKENIZER}, "run": {"steps": 0}}))
