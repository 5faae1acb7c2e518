"""A checkpoint and a retrieval set -> Results: recalls both ways, intervals, examples, and where they come from."""

import datetime
import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch

from finetune.bootstrap import Intervals, intervals
from finetune.examples import collect_examples
from finetune.ranking import Ranked, ScoreName, Side, rank
from finetune.recall import Recall, tied_fraction
from finetune.results import CheckpointFacts, DataFacts, Direction, FirstStage, Protocol, Results, RSum
from finetune.retrieval import RetrievalSet
from finetune.score import Batching, Scorer
from pretrain.checkpoint import Checkpoint
from shards.errors import UserError

DEFAULT_RERANK, FEWEST_RERANK = 32, 10
DATASETS = {"coco_5k": (5000, 1), "coco_1k": (5000, 5), "flickr30k": (1000, 1)}  # images, folds
PACKAGES = ("torch", "timm", "transformers", "numpy")


@dataclass(frozen=True)
class Options:
    """How to measure; `rerank` is k of the second stage, 0 for none."""

    rerank: int = 0
    score: ScoreName = "itm"
    folds: int = 1
    device: str = "cpu"
    batching: Batching = field(default_factory=Batching)


@dataclass(frozen=True)
class Labels:
    """What people call a row: itself, its data, the dataset it stands under, its pretraining data, the command."""

    name: str
    data: str
    dataset: str
    pretraining_data: str
    command: str


def choose_rerank(rerank: int | None, checkpoint: Checkpoint) -> int:
    """Decides k; None means 32 where the checkpoint can match, else 0.

    Raises:
        UserError: 0 < k < 10, where recall at 10 would say nothing; or a checkpoint that cannot match.
    """
    matches = "itm" in checkpoint.task.objectives and checkpoint.config.model.fusion.trunk != "none"
    if rerank is None:
        return DEFAULT_RERANK if matches else 0
    if rerank and not matches:
        raise UserError(f"`--rerank` (={rerank}) needs a checkpoint with a matching head, `objectives.itm`")
    check_rerank(rerank)
    return rerank


def check_rerank(rerank: int | None) -> None:
    """The part of `choose_rerank` that needs no checkpoint."""
    if rerank is not None and rerank < FEWEST_RERANK and rerank != 0:
        raise UserError(f"`--rerank` (={rerank}) must be 0 (off) or at least {FEWEST_RERANK}, as R@10 is reported")


def choose_folds(dataset: str, images: int) -> int:
    """The folds of a published dataset; 1 for any other name.

    Raises:
        UserError: a published name for data of another size.
    """
    expected, folds = DATASETS.get(dataset, (images, 1))
    if images != expected:
        raise UserError(f"`--dataset` (={dataset}) must have {expected} images; the data has {images}")
    return folds


def evaluate(checkpoint: Checkpoint, data: RetrievalSet, labels: Labels, options: Options) -> Results:
    """Measures both directions.

    Raises:
        UserError: folds that do not divide the images.
        DamagedSample: an image that cannot be read.
    """
    begin = time.monotonic()
    folds = data.folds(options.folds)
    sides = [Side(fold, by_image) for by_image in (True, False) for fold in folds]
    ranked = rank(Scorer(checkpoint, data, options.device, options.batching), sides, options.rerank, options.score)
    i2t, t2i = ranked[: len(folds)], ranked[len(folds) :]
    return Results(
        name=labels.name,
        stream="dual",  # every trunk there is encodes the two sides apart first
        checkpoint=_checkpoint_facts(checkpoint),
        data=_data_facts(data, labels),
        pretraining_data=labels.pretraining_data,
        protocol=_protocol(data, options),
        i2t=_direction(i2t, options.rerank),
        t2i=_direction(t2i, options.rerank),
        rsum=_rsum(i2t, t2i, data),
        command=labels.command,
        versions=_versions(),
        machine={"system": platform.machine(), "cpus": os.cpu_count() or 0, "device": _device(options.device)},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - begin, 1),
        examples_i2t=collect_examples(data, i2t),
        examples_t2i=collect_examples(data, t2i),
    )


def _direction(folds: Sequence[Ranked], k: int) -> Direction:
    pessimistic = [Recall.of(fold.ranks.pessimistic) for fold in folds]
    return Direction(
        queries=sum(len(fold.ranks.pessimistic) for fold in folds),
        pessimistic=Recall.mean_of(pessimistic),
        optimistic=Recall.mean_of([Recall.of(fold.ranks.optimistic) for fold in folds]),
        tied=float(np.mean([tied_fraction(fold.ranks) for fold in folds])),
        first_stage=_first_stage(folds) if k else None,
        deviation=_deviation(pessimistic) if len(folds) > 1 else None,
    )


def _first_stage(folds: Sequence[Ranked]) -> FirstStage:
    return FirstStage(
        recall=Recall.mean_of([Recall.of(fold.stage.ranks.pessimistic) for fold in folds]),
        ceiling=100 * float(np.mean([fold.stage.found_Q.mean() for fold in folds])),
        boundary_ties=sum(fold.stage.boundary_ties for fold in folds),
    )


def _deviation(folds: Sequence[Recall]) -> Recall:
    return Recall(*(float(np.std([getattr(fold, f.name) for fold in folds], ddof=1)) for f in fields(Recall)))


def _rsum(i2t: Sequence[Ranked], t2i: Sequence[Ranked], data: RetrievalSet) -> RSum:
    def total(rule: str) -> float:
        return sum(Recall.mean_of([Recall.of(getattr(f.ranks, rule)) for f in side]).sum for side in (i2t, t2i))

    return RSum(pessimistic=total("pessimistic"), optimistic=total("optimistic"), intervals=_intervals(i2t, t2i, data))


def _intervals(i2t: Sequence[Ranked], t2i: Sequence[Ranked], data: RetrievalSet) -> Intervals:
    """Over the images of all folds together."""
    ranks_I, ranks_T = (np.concatenate([fold.ranks.pessimistic for fold in side]) for side in (i2t, t2i))
    return intervals(ranks_I, ranks_T, data.image_T)


def _checkpoint_facts(checkpoint: Checkpoint) -> CheckpointFacts:
    return CheckpointFacts(
        digest=checkpoint.digest, run=run_name(checkpoint), name=checkpoint.path.name, step=checkpoint.step
    )


def run_name(checkpoint: Checkpoint) -> str:
    """The run folder around RUN/checkpoints/step-N, USER/NAME in a hub's cache, else the checkpoint folder itself."""
    path = checkpoint.path.resolve()
    if path.parent.name == "snapshots":
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name


def _data_facts(data: RetrievalSet, labels: Labels) -> DataFacts:
    return DataFacts(
        name=labels.data,
        dataset=labels.dataset,
        digest=data.source.fingerprint(),
        images=len(data.keys),
        texts=len(data.texts),
    )


def _protocol(data: RetrievalSet, options: Options) -> Protocol:
    score = options.score if options.rerank else "itc"
    return Protocol(captions=data.captions, rerank=options.rerank, score=score, folds=options.folds)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def _device(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu"
