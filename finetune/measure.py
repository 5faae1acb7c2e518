"""`finetune evaluate` behind the command line: from what was typed to results.json, every refusal before any work."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from finetune.compatibility.modes import check_modes
from finetune.evaluate import (
    Measurement,
    Options,
    check_rerank,
    choose_every_pair,
    choose_folds,
    choose_rerank,
    evaluate,
    matches,
    shares,
)
from finetune.examples import thumbnails
from finetune.facts import Labels, run_name
from finetune.published import published_results
from finetune.query_ranks import ranks_path
from finetune.ranking import ScoreName
from finetune.results import Results, gallery_path
from finetune.retrieval import RetrievalSet, open_input
from pretrain import distributed
from pretrain.checkpoint import load_checkpoint
from pretrain.engine import start_process_group
from pretrain.machine import world_from_environment
from shards.errors import UserError, nearest
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
    every_pair: bool
    score: ScoreName
    captions: Literal["all", "first5"]
    compat: tuple[str, ...]
    compat_images: Path | None
    group_by: str | None
    name: str | None
    dataset: str | None
    system: str
    trained_on: str
    device: str | None
    command: str


def measure(request: Request, out: Path, overwrite: bool) -> Results:
    """Evaluates and writes `out` with its ranks and gallery; `out` comes last, so that it never stands alone.

    Under a launcher every rank calls it; the first writes.

    Raises:
        UserError: before anything is encoded or written.
    """
    if out.exists() and not overwrite:
        raise UserError(f"`--out` (={out}) must not exist yet; replace it with --overwrite")
    check_rerank(request.rerank)
    check_system(request.system)
    corpus = open_input(request.annotations, request.images, request.split, request.shards)
    dataset = request.dataset or corpus.name
    folds = choose_folds(dataset, len(corpus.source))
    checkpoint = load_checkpoint(request.ckpt)
    every_pair = choose_every_pair(request.every_pair, checkpoint)
    rerank = choose_rerank(request.rerank, checkpoint, every_pair)
    check_modes(request.compat, matches(checkpoint), shares(checkpoint), rerank)
    device = choose_device(request.device)
    images = _names(request.compat_images)
    labels = Labels(
        name=request.name or run_name(checkpoint),
        data=corpus.name,
        dataset=dataset,
        system=request.system,
        pretraining_data=request.trained_on,
        command=request.command,
    )
    data = RetrievalSet.from_source(corpus.source, request.captions)
    if world_from_environment() > 1:
        device = join(device, request.device)
    options = Options(rerank, every_pair, request.score, folds, device, request.compat, images, request.group_by)
    measured = evaluate(checkpoint, data, labels, options)
    if distributed.rank() == 0:
        _write(measured, data, out)
    distributed.barrier()
    return measured.results


def _write(measured: Measurement, data: RetrievalSet, out: Path) -> None:
    results = measured.results
    pictures = thumbnails(data, [results.examples_i2t, results.examples_t2i])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(gallery_path(out), json.dumps(pictures, indent=0).encode())
    write_atomically(ranks_path(out), measured.ranks.to_bytes())
    write_atomically(out, results.model_dump_json(indent=1).encode())


def join(device: str, asked: str | None) -> str:
    """Joins the launcher's group; each rank takes its own GPU unless one device was asked for by name."""
    own = start_process_group()
    return device if asked else str(own)


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


def check_system(system: str) -> None:
    """Refuses a name that no published row has; empty is none.

    Raises:
        UserError: with the nearest name.
    """
    known = list(dict.fromkeys(row.system for row in published_results()))
    if system and system not in known:
        raise UserError(f"`--system` (={system}) must be one of {', '.join(known)}{nearest(system, known)}")


def _names(file: Path | None) -> tuple[str, ...]:
    """One name of an image a line.

    Raises:
        UserError: no such file.
    """
    if file is None:
        return ()
    if not file.is_file():
        raise UserError(f"`--compat-images` (={file}) is not a file")
    return tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
