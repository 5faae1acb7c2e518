"""A checkpoint and a retrieval set -> Results: recalls both ways, intervals, examples, and where they come from."""

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from finetune import facts
from finetune.analysis import analyse, groups_of
from finetune.bootstrap import intervals
from finetune.compatibility.material import Material
from finetune.compatibility.modes import asks_whole, check_captions, run_modes
from finetune.examples import collect_examples
from finetune.extended import extended, fits, installed, load_ground_truth
from finetune.facts import Labels
from finetune.query_ranks import QueryRanks, digest
from finetune.ranking import Ranked, ScoreName, Side, rank
from finetune.recall import Indices, Ranks, Recall, Scores, tied_fraction
from finetune.results import AsPrinted, Direction, Extended, FirstStage, Protocol, Results, RSum
from finetune.retrieval import Fold, RetrievalSet
from finetune.score import Batching, Scorer, Similarity
from pretrain.checkpoint import Checkpoint
from shards.errors import UserError

DEFAULT_RERANK, FEWEST_RERANK = 32, 10
DATASETS = {"coco_5k": (5000, 1), "coco_1k": (5000, 5), "flickr30k": (1000, 1)}  # images, folds


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        rerank: k of the second stage, 0 for none.
        every_pair: Rank by the matching head alone, which reads every image with every text.
        compat: Published evaluators whose figures stand beside, `compat_images` their fixed list of images.
        group_by: The metadata field whose confusions are counted.
    """

    rerank: int = 0
    every_pair: bool = False
    score: ScoreName = "itm"
    folds: int = 1
    device: str = "cpu"
    compat: tuple[str, ...] = ()
    compat_images: tuple[str, ...] = ()
    group_by: str | None = None
    batching: Batching = field(default_factory=Batching)


@dataclass(frozen=True)
class Measurement:
    """Results, and the ranks that stand beside them."""

    results: Results
    ranks: QueryRanks


def matches(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint can score a pair by reading image and text together."""
    return checkpoint.task.matcher is not None and checkpoint.config.model.fusion.trunk != "none"


def shares(checkpoint: Checkpoint) -> bool:
    """Whether images and texts have a shared space, so that a dot product can compare them."""
    return checkpoint.config.model.embedding_dim is not None


def choose_rerank(rerank: int | None, checkpoint: Checkpoint, every_pair: bool = False) -> int:
    """Decides k; None means 32 where the checkpoint can choose candidates and match, else 0.

    Raises:
        UserError: 0 < k < 10, where recall at 10 would say nothing; or a checkpoint that cannot choose or match.
    """
    two_stages = matches(checkpoint) and shares(checkpoint) and not every_pair
    if rerank is None:
        return DEFAULT_RERANK if two_stages else 0
    if rerank and not matches(checkpoint):
        raise UserError(f"`--rerank` (={rerank}) needs a checkpoint with a matching head, `objectives.itm`")
    if rerank and not two_stages:
        raise UserError(f"`--rerank` (={rerank}) must be 0 where every pair is matched: there is no first stage")
    check_rerank(rerank)
    return rerank


def choose_every_pair(every_pair: bool, checkpoint: Checkpoint) -> bool:
    """Whether every pair is matched: where it is asked for, and where there is no shared space.

    Raises:
        UserError: a checkpoint that cannot match.
    """
    if (every_pair or not shares(checkpoint)) and not matches(checkpoint):
        name = "`--every-pair`" if every_pair else "`ckpt` has no shared space (`model.embedding_dim` is null), so it"
        raise UserError(f"{name} needs a matching head, `objectives.itm`")
    return every_pair or not shares(checkpoint)


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


def evaluate(checkpoint: Checkpoint, data: RetrievalSet, labels: Labels, options: Options) -> Measurement:
    """Measures both directions. Under a launcher every rank calls it, scores its share and gets the same figures."""
    begin = time.monotonic()
    folds = data.folds(options.folds)
    check_captions(options.compat, int(np.bincount(data.image_T).min()))
    subset = _subset(data, options.compat_images)
    if options.group_by:
        groups_of(data, options.group_by)
    scorer = Scorer(checkpoint, data, options.device, options.batching)
    if options.compat and scorer.kind != "pooled":
        raise UserError(
            f"`--compat` (={options.compat[0]}) is for models that compare one vector a side; this one compares "
            f"{scorer.kind} (`objectives.itc.similarity`)"
        )
    similarity, logit_IT = _score(scorer, folds, options)
    sides = [Side(fold, by_image=True) for fold in folds] + [Side(fold, by_image=False) for fold in folds]
    ranked = rank(scorer, similarity, sides, options.rerank, options.score)
    i2t, t2i = ranked[: len(folds)], ranked[len(folds) :]
    ranks = QueryRanks(_joined(i2t), _joined(t2i), data.image_T)
    results = Results(
        name=labels.name,
        system=labels.system,
        stream=facts.stream_of(checkpoint),
        checkpoint=facts.checkpoint_facts(checkpoint),
        data=facts.data_facts(data, labels),
        pretraining_data=labels.pretraining_data,
        protocol=_protocol(data, options),
        i2t=_direction(i2t, options.rerank),
        t2i=_direction(t2i, options.rerank),
        rsum=_rsum(i2t, t2i, ranks),
        ranks=digest(ranks.to_bytes()),
        extended=_extended(data, similarity, i2t, t2i),
        compatibility=_compatibility(scorer, similarity, logit_IT, options, subset),
        analysis=analyse(data, similarity, "itm" if options.every_pair else "itc", i2t, t2i, options.group_by),
        command=labels.command,
        versions=facts.versions(),
        machine=facts.machine(options.device),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - begin, 1),
        examples_i2t=collect_examples(data, i2t),
        examples_t2i=collect_examples(data, t2i),
    )
    return Measurement(results, ranks)


def _score(scorer: Scorer, folds: Sequence[Fold], options: Options) -> tuple[Similarity, Scores | None]:
    """The first score of all pairs, and the logit of a match where they are matched: of those inside folds alone,
    unless a published evaluator wants all."""
    if not options.every_pair:
        return scorer.similarity(), None
    log_odds_IT, logit_IT = scorer.every_pair(scorer.data.folds(1) if asks_whole(options.compat) else folds)
    return Similarity.both(log_odds_IT), logit_IT


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


def _rsum(i2t: Sequence[Ranked], t2i: Sequence[Ranked], ranks: QueryRanks) -> RSum:
    def total(rule: str) -> float:
        return sum(Recall.mean_of([Recall.of(getattr(f.ranks, rule)) for f in side]).sum for side in (i2t, t2i))

    return RSum(pessimistic=total("pessimistic"), optimistic=total("optimistic"), intervals=intervals(ranks, len(i2t)))


def _joined(folds: Sequence[Ranked]) -> Ranks:
    """All folds one after the other: the order of the whole set."""
    return Ranks(
        np.concatenate([fold.ranks.optimistic for fold in folds]),
        np.concatenate([fold.ranks.pessimistic for fold in folds]),
    )


def _extended(
    data: RetrievalSet, similarity: Similarity, i2t: Sequence[Ranked], t2i: Sequence[Ranked]
) -> Extended | None:
    """Where the whole COCO test set was ranked as one and the ground truth is installed."""
    if len(i2t) > 1 or not installed():
        return None
    truth = load_ground_truth()
    return extended(data, truth, similarity, i2t[0], t2i[0]) if fits(data, truth) else None


def _compatibility(
    scorer: Scorer, similarity: Similarity, logit_IT: Scores | None, options: Options, subset: Indices | None
) -> list[AsPrinted]:
    if not options.compat:
        return []
    first = scorer.similarity() if options.every_pair and shares(scorer.checkpoint) else similarity
    material = Material(
        similarity_IT=first.by_image_IT,
        every_logit_IT=logit_IT,
        image_T=scorer.data.image_T,
        texts=scorer.data.texts,
        folds=options.folds,
        k=options.rerank,
        subset=subset,
        embeddings=scorer.embeddings if shares(scorer.checkpoint) else None,
        logits=scorer.logits if matches(scorer.checkpoint) else None,
    )
    return run_modes(options.compat, material)


def _subset(data: RetrievalSet, names: Sequence[str]) -> Indices | None:
    """The places of a fixed list of images, by COCO's id or by key, in the order of the list.

    Raises:
        UserError: a name that is not in the data.
    """
    if not names:
        return None
    place = {key: index for index, key in enumerate(data.keys)}
    place |= {str(entry["cocoid"]): index for index, entry in enumerate(data.metadata) if "cocoid" in entry}
    if missing := [name for name in names if name not in place]:
        raise UserError(f"`--compat-images` names {len(missing)} images that the data lacks, the first is {missing[0]}")
    return np.array([place[name] for name in names], np.int64)


def _protocol(data: RetrievalSet, options: Options) -> Protocol:
    score = options.score if options.rerank else "itm" if options.every_pair else "itc"
    return Protocol(captions=data.captions, rerank=options.rerank, score=score, folds=options.folds)
