"""`finetune evaluate` behind the command line: from what was typed to results.json, every refusal before any work."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from finetune.evaluate import Labels, Options, check_rerank, choose_folds, choose_rerank, evaluate, run_name
from finetune.examples import thumbnails
from finetune.ranking import ScoreName
from finetune.results import Results, gallery_path
from finetune.retrieval import RetrievalSet, open_input
from pretrain.checkpoint import load_checkpoint
from shards.errors import UserError
from shards.storage import write_atomically


@dataclass(frozen=True)
class Request:
    """What was typed; None where the default depends on the checkpoint, the data or the machine."""

    ckpt: Path
    annotations: Path | None
    images: Path | None
    split: str
    shards: Path | None
    rerank: int | None
    score: ScoreName
    captions: Literal["all", "first5"]
    name: str | None
    dataset: str | None
    trained_on: str
    device: str | None
    command: str


def measure(request: Request, out: Path, overwrite: bool) -> Results:
    """Evaluates and writes `out` and its gallery; `out` comes last, so that it never stands alone.

    Raises:
        UserError: before anything is encoded or written.
    """
    if out.exists() and not overwrite:
        raise UserError(f"`--out` (={out}) must not exist yet; replace it with --overwrite")
    check_rerank(request.rerank)
    corpus = open_input(request.annotations, request.images, request.split, request.shards)
    dataset = request.dataset or corpus.name
    folds = choose_folds(dataset, len(corpus.source))
    checkpoint = load_checkpoint(request.ckpt)
    options = Options(choose_rerank(request.rerank, checkpoint), request.score, folds, choose_device(request.device))
    labels = Labels(
        name=request.name or run_name(checkpoint),
        data=corpus.name,
        dataset=dataset,
        pretraining_data=request.trained_on,
        command=request.command,
    )
    data = RetrievalSet.from_source(corpus.source, request.captions)
    results = evaluate(checkpoint, data, labels, options)
    pictures = thumbnails(data, [results.examples_i2t, results.examples_t2i])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(gallery_path(out), json.dumps(pictures, indent=0).encode())
    write_atomically(out, results.model_dump_json(indent=1).encode())
    return results


def choose_device(device: str | None) -> str:
    """The given device, else the first GPU, else the CPU.

    Raises:
        UserError: a device that this machine does not have.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise UserError(f"`--device` (={device}) must be cpu, or cuda where there is a GPU that torch can use")
    return device
