"""`finetune reproduce`: from a checkpoint and a dataset folder to the row of a published system.

Before anything runs it says what is there and what is missing, how much disk and memory it takes, and how long: a probe
encodes and matches a few real pairs with this checkpoint on this machine.
"""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np

from finetune.compatibility.modes import asks_whole
from finetune.evaluate import DATASETS, choose_every_pair, choose_rerank, matches, shares
from finetune.measure import Request, choose_device, measure
from finetune.published import Reproduction, published_results, reproductions
from finetune.results import Results
from finetune.retrieval import RetrievalSet
from finetune.score import Scorer
from pretrain.checkpoint import Checkpoint, load_checkpoint
from pretrain.machine import world_from_environment
from shards.errors import UserError, nearest
from shards.sources.karpathy import KarpathySource

CORPORA = {"coco": ("coco_5k", "coco_1k"), "flickr30k": ("flickr30k",)}
PROBED = 16  # images, and texts of each kind of work, that the probe takes
SPLITS = "the Karpathy split file, from cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"


@dataclass(frozen=True)
class Asked:
    """What was typed; None where a default is looked for."""

    system: str
    data: Literal["coco", "flickr30k"]
    images: Path
    annotations: Path | None
    ckpt: str | None
    out: Path
    rerank: int | None
    device: str | None
    command: str


@dataclass(frozen=True)
class Speed:
    """Seconds for one image, one text and one pair."""

    image: float
    text: float
    pair: float


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        datasets: Rows to measure.
        pairs: Pairs that the matching head reads, for all of them.
    """

    recipe: Reproduction
    datasets: tuple[str, ...]
    annotations: Path
    checkpoint: Checkpoint
    data: RetrievalSet
    rerank: int
    every_pair: bool
    pairs: int
    speed: Speed
    ranks: int

    @property
    def hours(self) -> float:
        """Of the whole, estimated from the probe."""
        images, texts = len(self.data.keys), len(self.data.texts)
        passes = len(self.datasets)
        seconds = passes * (images * self.speed.image + texts * self.speed.text) + self.pairs * self.speed.pair
        return seconds / self.ranks / 3600

    @property
    def gigabytes(self) -> float:
        """Memory of each rank: half a GB of libraries, five copies of all scores, the text features.

        Measured at COCO 5K with a tiny model: 3.1 GB at most.
        """
        width = self.checkpoint.task.model.shape.width
        features = len(self.data.texts) * self.checkpoint.config.data.max_tokens * width
        return 0.5 + 4 * (5 * len(self.data.keys) * len(self.data.texts) + features) / 1e9

    def lines(self, out: Path) -> list[str]:
        """For people."""
        images, texts = len(self.data.keys), len(self.data.texts)
        free = shutil.disk_usage(_existing(out)).free / 1e9
        how = "the similarity of two encoders"
        if self.rerank:
            how = f"the matching head on the best {self.rerank} by similarity"
        elif self.every_pair:
            how = f"the matching head on every pair ({self.pairs:,} in all)"
        return [
            f"system      {self.recipe.system}, rows {', '.join(self.datasets)}",
            f"checkpoint  {self.checkpoint.path}, {self.checkpoint.digest[:12]}, step {self.checkpoint.step}",
            f"data        {images:,} images, {texts:,} texts (captions {self.recipe.captions}) of {self.annotations}",
            f"ranked by   {how}",
            f"disk        5 MB in {out}, where {free:.1f} GB are free",
            f"memory      about {self.gigabytes:.1f} GB for each of {self.ranks} processes",
            f"time        about {_span(self.hours)}, from a probe of {PROBED} images",
        ]


def find_system(name: str) -> Reproduction:
    """The recipe of a published system, whatever the case of the letters.

    Raises:
        UserError: none of that name.
    """
    known = {system.lower(): recipe for system, recipe in reproductions().items()}
    if name.lower() not in known:
        names = [recipe.system for recipe in known.values()]
        raise UserError(f"`SYSTEM` (={name}) must be one of {', '.join(names)}{nearest(name, names)}")
    return known[name.lower()]


def plan(asked: Asked) -> Plan:
    """Looks at everything that the command will need and times a few pairs. Writes nothing.

    Raises:
        UserError: what is missing, all of it at once.
    """
    recipe = find_system(asked.system)
    annotations = _annotations(asked)
    missing = [
        *([] if annotations else [f"`--annotations`: {SPLITS}, unpacked beside the images or given"]),
        *([] if asked.images.is_dir() else [f"`--images` (={asked.images}): the folder with the images"]),
        *([] if asked.ckpt else ["`--ckpt`: a checkpoint folder, a run folder or USER/NAME of a hub"]),
    ]
    if missing or annotations is None or asked.ckpt is None:
        raise UserError(f"{recipe.system} on {asked.data} needs " + "; and ".join(missing))
    source = KarpathySource(annotations, asked.images, "test")
    datasets = _datasets(recipe, asked.data, len(source))
    checkpoint = load_checkpoint(asked.ckpt)
    every_pair = choose_every_pair(recipe.every_pair and asked.rerank is None, checkpoint)
    k = recipe.k[asked.data] if asked.rerank is None else asked.rerank
    rerank = choose_rerank(k, checkpoint, every_pair)
    data = RetrievalSet.from_source(source, cast(Literal["all", "first5"], recipe.captions))
    speed = probe(checkpoint, data, choose_device(asked.device))
    pairs = sum(_pairs(data, rerank, DATASETS[name][1] if every_pair else None) for name in datasets)
    ranks = world_from_environment()
    return Plan(recipe, datasets, annotations, checkpoint, data, rerank, every_pair, pairs, speed, ranks)


def carry_out(asked: Asked, planned: Plan) -> list[Results]:
    """Measures each row into `out`/DATASET.json."""
    request = Request(
        ckpt=planned.checkpoint.path,
        annotations=planned.annotations,
        images=asked.images,
        split="test",
        shards=None,
        rerank=planned.rerank,
        every_pair=planned.every_pair,
        score="itm",
        captions=cast(Literal["all", "first5"], planned.recipe.captions),
        compat=(),
        compat_images=None,
        group_by=None,
        name=f"{planned.recipe.system}, measured",
        dataset=None,
        system=planned.recipe.system,
        trained_on=_pretraining_data(planned.recipe.system),
        device=asked.device,
        command=asked.command,
    )
    return [
        measure(
            replace(request, dataset=dataset, compat=_compat(planned, dataset)),
            asked.out / f"{dataset}.json",
            overwrite=True,
        )
        for dataset in planned.datasets
    ]


def _compat(planned: Plan, dataset: str) -> tuple[str, ...]:
    """The recipe's mode; one that reads every pair stands beside the row of the whole set, where every pair is read."""
    compat = planned.recipe.compat
    if not compat or (asks_whole([compat]) and not (planned.every_pair and DATASETS[dataset][1] == 1)):
        return ()
    return (compat,)


def probe(checkpoint: Checkpoint, data: RetrievalSet, device: str) -> Speed:
    """Times the first images and their texts, after a first pass that loads what has to be loaded."""
    images = min(PROBED, len(data.keys))
    stop = data.texts_of(images - 1).stop
    few = replace(
        data,
        keys=data.keys[:images],
        texts=data.texts[:stop],
        image_T=data.image_T[:stop],
        metadata=data.metadata[:images],
    )
    _timed(checkpoint, few, device)
    return _timed(checkpoint, few, device)


def _timed(checkpoint: Checkpoint, few: RetrievalSet, device: str) -> Speed:
    scorer = Scorer(checkpoint, few, device)
    begin = time.perf_counter()
    assert scorer.texts.lengths_U.numel()
    encoded = time.perf_counter()
    if shares(checkpoint):
        scorer.similarity()
    compared = time.perf_counter()
    images = len(few.keys)
    image_P, text_P = np.repeat(np.arange(images), PROBED), np.tile(np.arange(PROBED) % len(few.texts), images)
    if matches(checkpoint):
        scorer.matching(image_P, text_P)
    end = time.perf_counter()
    text, image = (encoded - begin) / len(few.texts), (compared - encoded) / images
    return Speed(image, text, max(0.0, end - compared) / len(image_P))


def _annotations(asked: Asked) -> Path | None:
    """The given file, else one of the usual name in or beside the image folder."""
    if asked.annotations:
        return asked.annotations
    name = f"dataset_{asked.data}.json"
    return next((place for place in (asked.images / name, asked.images.parent / name) if place.is_file()), None)


def _datasets(recipe: Reproduction, data: str, images: int) -> tuple[str, ...]:
    """The rows that the survey prints of this system on this data."""
    printed = {row.dataset for row in published_results() if row.system == recipe.system}
    datasets = tuple(name for name in CORPORA[data] if name in printed)
    if not datasets:
        raise UserError(f"`SYSTEM` (={recipe.system}) has no published row on {data}; `finetune evaluate` measures any")
    expected, _ = DATASETS[datasets[0]]
    if images != expected:
        raise UserError(f"the test split of {data} must have {expected} images; the annotations name {images}")
    return datasets


def _pairs(data: RetrievalSet, rerank: int, folds: int | None) -> int:
    """Those of every image with every text of its fold, or of k candidates where `folds` is None."""
    if folds is None:
        return rerank * (len(data.keys) + len(data.texts))
    parts = data.folds(folds)
    return sum(len(data.keys[fold.images]) * len(data.texts[fold.texts]) for fold in parts)


def _pretraining_data(system: str) -> str:
    return next(row.pretraining_data for row in published_results() if row.system == system)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.resolve().parents) if place.exists())


def _span(hours: float) -> str:
    if hours < 1 / 60:
        return "a minute"
    return f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.1f} hours"
