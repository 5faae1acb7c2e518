"""The folder that is published: the same bytes for the same inputs, so that an upload can go on where it broke.

model.safetensors  config.yaml  tokenizer.json  state.json    the checkpoint, without paths of this machine
config.json  tokenizer_config.json  preprocessing.json        for transformers, and for people
README.md                                                     the model card (card.py)
results*.json                                                 the measured rows
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.publish.card import Statements, model_card
from finetune.results import Examples, Results, read_results
from pretrain.checkpoint import CONFIG, EMA, STATE, WEIGHTS, Checkpoint
from pretrain.config import PretrainConfig
from pretrain.data.tokenizer import FILE as TOKENIZER
from pretrain.settings import dump_config
from shards.errors import UserError

CARD, AUTO, AUTO_TOKENIZER, PREPROCESSING = "README.md", "config.json", "tokenizer_config.json", "preprocessing.json"
MODEL_TYPE = "duostream"
TRAINER = "trainer"


@dataclass(frozen=True)
class Measured:
    """A results file and the name that it takes in the folder."""

    name: str
    results: Results


def read_measured(files: Sequence[Path], checkpoint: Checkpoint) -> list[Measured]:
    """Reads results files.

    Raises:
        UserError: not a results file, or one that measured other weights.
    """
    measured = []
    for number, file in enumerate(files):
        results = read_results(file)
        if results.checkpoint.digest != checkpoint.digest:
            raise UserError(
                f"`--results` (={file}) measured weights {results.checkpoint.digest[:12]}, "
                f"but the checkpoint has {checkpoint.digest[:12]}"
            )
        measured.append(Measured("results.json" if number == 0 else f"results-{number + 1}.json", results))
    return measured


def check_source(folder: Path) -> None:
    """Raises UserError where a checkpoint folder holds files that are no part of a checkpoint: are they to be sent?"""
    known = {WEIGHTS, EMA, CONFIG, TOKENIZER, STATE, TRAINER, CARD, AUTO, AUTO_TOKENIZER, PREPROCESSING}
    strange = sorted(path.name for path in folder.iterdir() if path.name not in known and not _is_results(path.name))
    if strange:
        raise UserError(
            f"`ckpt` (={folder}) holds {strange[0]}, which is no part of a checkpoint and is not published: "
            "move it elsewhere first"
        )


def export(
    folder: Path, checkpoint: Checkpoint, measured: Sequence[Measured], repo: str, statements: Statements
) -> None:
    """Fills the empty `folder`. The weights are copied byte for byte: their digest stays the one that was measured."""
    shutil.copyfile(checkpoint.path / checkpoint.weights, folder / WEIGHTS)
    config = portable(checkpoint.config)
    (folder / CONFIG).write_text(dump_config(config))
    checkpoint.tokenizer.save(folder)
    files = {name: _sha256(folder / name) for name in (WEIGHTS, CONFIG, TOKENIZER)}
    _write_json(folder / STATE, {"step": checkpoint.step, "world": 1, "stream": {}, "files": files})
    _write_json(folder / AUTO, auto_config(checkpoint))
    _write_json(folder / AUTO_TOKENIZER, checkpoint.tokenizer.for_transformers(checkpoint.config.data.max_tokens))
    _write_json(folder / PREPROCESSING, preprocessing(checkpoint))
    for one in measured:
        (folder / one.name).write_text(without_examples(one.results).model_dump_json(indent=1))
    results = [one.results for one in measured]
    (folder / CARD).write_text(model_card(checkpoint, results, repo, statements))


def portable(config: PretrainConfig) -> PretrainConfig:
    """The configuration without places of this machine. What trained the model stays; where it lay does not.

    Raises:
        UserError: the model needs a file of region labels, which the folder has no place for.
    """
    if config.data.regions and config.data.regions.labels:
        raise UserError(
            f"`ckpt` reads region labels (`data.regions.labels` is {config.data.regions.labels}), "
            "which a published folder cannot hold"
        )
    data = config.data.model_copy(update={"shards": "", "tokenizer": TOKENIZER})
    run = config.run.model_copy(update={"out": ""})
    return config.model_copy(update={"data": data, "run": run})


def auto_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What transformers reads to find the class; the class itself reads config.yaml."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["DuostreamModel"],
        "image_size": checkpoint.config.model.image_size,
        "max_tokens": checkpoint.config.data.max_tokens,
        "projection_dim": checkpoint.config.model.embedding_dim,
        "vocab_size": len(checkpoint.tokenizer),
    }


def preprocessing(checkpoint: Checkpoint) -> dict[str, Any]:
    """What happens to an image before the model; normalising happens inside it."""
    size = checkpoint.config.model.image_size
    if checkpoint.config.model.vision.region:
        return {"image": "regions of a detector, as config.yaml says under data.regions"}
    return {
        "image": {
            "decode": "RGB, EXIF orientation applied, transparency on white",
            "resize": {"height": size, "width": size, "filter": "bicubic, antialiased", "keep_aspect": False},
            "tensor": "uint8 [B, H, W, 3]",
            "normalize": "inside the model",
        },
        "text": {"max_tokens": checkpoint.config.data.max_tokens, "tokenizer": TOKENIZER},
    }


def without_examples(results: Results) -> Results:
    """The figures alone: the captions that the report shows are the corpus's, and not the publisher's to give away."""
    none = Examples(sample=[], worst=[])
    return results.model_copy(update={"examples_i2t": none, "examples_t2i": none})


def _is_results(name: str) -> bool:
    return name.startswith("results") and name.endswith(".json")


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
