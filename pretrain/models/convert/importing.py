"""`pretrain import`: a published checkpoint -> one of ours, whole or not at all.

config.json -> PretrainConfig        tensors -> name table -> model.safetensors        tokenizer.json as it is
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from pretrain.checkpoint import CONFIG, STATE, WEIGHTS
from pretrain.config import PretrainConfig
from pretrain.data.tokenizer import FILE as TOKENIZER
from pretrain.data.tokenizer import Tokenizer
from pretrain.models.convert.files import read_tensors
from pretrain.models.convert.formats import AUTHORS, OPEN_CLIP, TRANSFORMERS, Architecture
from pretrain.models.convert.pixels import Pixels, fold, published_pixels
from pretrain.models.convert.rules import Table, convert
from pretrain.settings import dump_config, load_config, merge, parse_config
from pretrain.task import Task
from shards.errors import UserError, nearest
from shards.storage import replace_folder_atomically

FORMATS = ("transformers", "open_clip", *AUTHORS)


@dataclass(frozen=True)
class Request:
    """What is to be imported.

    Attributes:
        source: A published folder, or a file where `config` says what it holds.
        kind: One of `FORMATS`.
        allow: Names of tensors that may be left over or missing.
        tokenizer: Where the tokenizer lies, if not in the folder.
        config: A configuration of ours, for the formats of authors' own code.
    """

    source: Path
    kind: str
    allow: Collection[str] = ()
    tokenizer: Path | None = None
    config: Path | None = None


class Imported(NamedTuple):
    """What came of an import: the model's parameters, and the names of ours that started anew."""

    parameters: int
    fresh: list[str]


class Plan(NamedTuple):
    """How the tensors of a source are read."""

    config: PretrainConfig
    table: Table
    pixels: Pixels | None


def import_checkpoint(request: Request, out: Path, overwrite: bool = False) -> Imported:
    """Writes the checkpoint folder `out`.

    Raises:
        UserError: a format or architecture that is not known, files that are missing or damaged, or tensors that do
            not fit.
    """
    if request.kind not in FORMATS:
        raise UserError(f"`format` (={request.kind}) must be one of {', '.join(FORMATS)}")
    tensors = {name: tensor.float() for name, tensor in read_tensors(request.source).items()}
    plan, words = _plan(request, tensors), _tokenizer(request)
    config = plan.config
    torch.manual_seed(config.run.seed)  # for what starts anew
    task = Task(config.model, config.objectives, len(words))
    wanted = {name: tensor.shape for name, tensor in task.state_dict().items()}
    made = convert(plan.table, tensors, wanted, f"`from` (={request.source})", request.allow)
    if plan.pixels:
        made = fold(made, task.model.vision, plan.pixels)
    task.load_state_dict(made, strict=False)
    task.start_momentum()
    with replace_folder_atomically(out, overwrite, mark=STATE) as folder:
        write_folder(folder, task.state_dict(), config, words)
    fresh = [name for name in wanted if name not in made and not name.startswith("momentum.")]
    return Imported(sum(p.numel() for p in task.model.parameters()), fresh)


def write_folder(folder: Path, weights: dict[str, Tensor], config: PretrainConfig, tokenizer: Tokenizer) -> None:
    """A checkpoint of step 0: all that use and fine-tuning need, nothing to resume."""
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / WEIGHTS)  # some share memory
    (folder / CONFIG).write_text(dump_config(config))
    tokenizer.save(folder)
    files = {}
    for name in (WEIGHTS, CONFIG, TOKENIZER):
        with (folder / name).open("rb") as file:
            files[name] = hashlib.file_digest(file, "sha256").hexdigest()
    (folder / STATE).write_text(json.dumps({"step": 0, "world": 1, "stream": {}, "files": files}, indent=1))


def _plan(request: Request, tensors: Mapping[str, Tensor]) -> Plan:
    if request.kind in AUTHORS:
        authors = AUTHORS[request.kind]
        config = load_config(PretrainConfig, request.config or Path(f"configs/systems/{request.kind}.yaml"))
        config = parse_config(PretrainConfig, merge(config.model_dump(), OF_A_CHECKPOINT))
        return Plan(config, authors.table(config.model), authors.pixels)
    if request.config:
        raise UserError(f"`config` (={request.config}) is for the formats {', '.join(AUTHORS)}: others bring their own")
    published = _published(request)
    architecture = _architecture(request.kind, published)
    try:
        settings = architecture.settings(published, tensors)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # transformers' classes have no one exception
        reason = " ".join(str(error).split())
        raise UserError(f"`from` (={request.source}) has a configuration that cannot be read: {reason}") from None
    config = parse_config(PretrainConfig, merge(settings, OF_A_CHECKPOINT))
    pixels = published_pixels(request.source, published) or architecture.pixels
    return Plan(config, architecture.table(config.model), pixels)


OF_A_CHECKPOINT = {"data": {"tokenizer": TOKENIZER, "shards": ""}, "run": {"steps": 0, "out": ""}}


def _tokenizer(request: Request) -> Tokenizer:
    place = request.tokenizer or request.source
    if request.tokenizer is None and not (place / TOKENIZER).is_file():
        raise UserError(f"`from` (={place}) holds no {TOKENIZER}: name it with `--tokenizer`")
    return Tokenizer(place)


def _published(request: Request) -> dict[str, Any]:
    file = request.source / ("open_clip_config.json" if request.kind == "open_clip" else "config.json")
    try:
        published = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"`from` (={request.source}) has no readable {file.name}: {error}") from None
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
