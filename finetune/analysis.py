"""What the figures do not say: which words are missed, which groups are confused, what each k of re-ranking would give,
and how far the scores of right and wrong pairs lie apart. All of it from one ranking, for the report.

Shapes: I images, T texts, Q queries, k candidates.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune.candidates import top
from finetune.ranking import Ranked
from finetune.recall import Indices, Recall, Scores, best_positive, chunks, is_positive, reranked_ranks
from finetune.results import Analysis, Confusion, Histogram, RerankPoint, WordMiss
from finetune.retrieval import Fold, RetrievalSet
from finetune.score import Similarity
from shards.errors import UserError

WORD = re.compile(r"[^\W\d_]+")
FEWEST_TEXTS = 5  # with a word; fewer say nothing of it
WORDS, CONFUSIONS, BINS = 15, 12, 40
SUSPECT = 2.0  # standard errors below the rest


def analyse(
    data: RetrievalSet,
    similarity: Similarity,
    score: Literal["itc", "itm"],
    i2t: Sequence[Ranked],
    t2i: Sequence[Ranked],
    group_by: str | None,
) -> Analysis:
    """Everything for one results file; `i2t` and `t2i` fold by fold, `score` what `similarity` is."""
    groups = groups_of(data, group_by) if group_by else None
    return Analysis(
        words=missed_words(data.texts, np.concatenate([fold.ranks.pessimistic for fold in t2i])),
        group_by=group_by or "",
        confusions_i2t=confusions(data, i2t, groups) if groups else [],
        confusions_t2i=confusions(data, t2i, groups) if groups else [],
        rerank=rerank_curve(similarity, i2t, t2i),
        histogram=histogram(similarity.by_image_IT, data.image_T, [fold.side.fold for fold in i2t], score),
    )


def groups_of(data: RetrievalSet, field: str) -> list[str]:
    """The group of each image.

    Raises:
        UserError: an image whose metadata lacks the field.
    """
    lacking = next((number for number, entry in enumerate(data.metadata) if field not in entry), None)
    if lacking is not None:
        known = ", ".join(sorted(map(str, data.metadata[lacking]))) or "nothing"
        raise UserError(f"`--group-by` (={field}) must be in every image's metadata; {data.keys[lacking]} has {known}")
    return [str(entry[field]) for entry in data.metadata]


def missed_words(texts: Sequence[str], rank_T: Indices) -> list[WordMiss]:
    """Words whose texts find their image first clearly less often than the other texts, the surest first."""
    hit_T = rank_T == 1
    holders: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        for word in set(WORD.findall(text.lower())):
            holders.setdefault(word, []).append(place)
    found = []
    for word, own in holders.items():
        if FEWEST_TEXTS <= len(own) < len(texts):
            hits = int(hit_T[own].sum())
            rest = (int(hit_T.sum()) - hits) / (len(texts) - len(own))
            surprise = (rest - hits / len(own)) / max(np.sqrt(rest * (1 - rest) / len(own)), 1e-9)
            if surprise >= SUSPECT:
                miss = WordMiss(word=word, texts=len(own), r1=100 * hits / len(own), others_r1=100 * rest)
                found.append((surprise, miss))
    return [miss for _, miss in sorted(found, key=lambda pair: (-pair[0], pair[1].word))[:WORDS]]


def confusions(data: RetrievalSet, folds: Sequence[Ranked], groups: Sequence[str]) -> list[Confusion]:
    """Groups of the wrong first answers, the most frequent pairs first; a group may be confused with itself."""
    counts: Counter[tuple[str, str]] = Counter()
    asked: Counter[str] = Counter()
    for fold in folds:
        for query in range(len(fold.ranks.pessimistic)):
            place = fold.side.queries.start + query
            owner = place if fold.side.by_image else int(data.image_T[place])
            item, _ = fold.best(query, 1)[0]
            answer = int(data.image_T[item]) if fold.side.by_image else item
            asked[groups[owner]] += 1
            if answer != owner:
                counts[groups[owner], groups[answer]] += 1
    return [
        Confusion(own=own, found=found, queries=count, of=asked[own])
        for (own, found), count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:CONFUSIONS]
    ]


def rerank_curve(similarity: Similarity, i2t: Sequence[Ranked], t2i: Sequence[Ranked]) -> list[RerankPoint]:
    """Recall had fewer candidates been re-ranked: k = 0, 10, 20, 40 ... up to what was done; empty for one stage."""
    if not i2t[0].reranked:
        return []
    most = max(fold.scores_Qk.shape[1] for fold in (*i2t, *t2i))
    ks = sorted({k for k in (0, *(10 * 2**n for n in range(12))) if k < most} | {most})
    return [_point(similarity, i2t, t2i, k) for k in ks]


def _point(similarity: Similarity, i2t: Sequence[Ranked], t2i: Sequence[Ranked], k: int) -> RerankPoint:
    both = [[_with_fewer(similarity, fold, k) for fold in way] for way in (i2t, t2i)]
    recalls = [Recall.mean_of([Recall.of(ranks) for ranks, _ in way]) for way in both]
    ceilings = [100 * float(np.mean([ceiling for _, ceiling in way])) for way in both]
    return RerankPoint(
        k=k,
        i2t_r1=recalls[0].r1,
        t2i_r1=recalls[1].r1,
        rsum=recalls[0].sum + recalls[1].sum,
        i2t_ceiling=ceilings[0],
        t2i_ceiling=ceilings[1],
    )


def _with_fewer(similarity: Similarity, fold: Ranked, k: int) -> tuple[Indices, float]:
    """Pessimistic ranks when only the best k by similarity are ordered again, and how many queries have a right one."""
    if not k:
        return fold.stage.ranks.pessimistic, float(np.mean(fold.stage.ranks.pessimistic == 1))
    positives = fold.side.positives
    kept_Qk, _ = top(fold.cosine_Qk, k)
    candidates_Qk = np.take_along_axis(fold.stage.candidates_Qk, kept_Qk, 1)
    chosen_by_Qk = np.take_along_axis(fold.cosine_Qk, kept_Qk, 1)
    tied_Q = (chosen_by_Qk == best_positive(fold.side.scores(similarity), positives)[:, None]).sum(1)
    scores_Qk = np.take_along_axis(fold.scores_Qk, kept_Qk, 1)
    ranks = reranked_ranks(fold.stage.ranks, positives, candidates_Qk, tied_Q, scores_Qk)
    return ranks.pessimistic, float(is_positive(candidates_Qk, positives).any(1).mean())


def histogram(
    similarity_IT: Scores, image_T: Indices, folds: Sequence[Fold], score: Literal["itc", "itm"]
) -> Histogram:
    """Shares of the right and the wrong pairs that folds rank, in equal bins from the lowest to the highest score."""
    parts = [similarity_IT[fold.images, fold.texts] for fold in folds]
    edges = np.linspace(min(part.min() for part in parts), max(part.max() for part in parts), BINS + 1)
    every, right = np.zeros(BINS), _binned(similarity_IT[image_T, np.arange(len(image_T))], edges)
    for part in parts:
        for rows in chunks(*part.shape):
            every += _binned(part[rows], edges)
    wrong = every - right
    return Histogram(
        score=score,
        edges=edges.tolist(),
        right=(right / right.sum()).tolist(),
        wrong=(wrong / max(wrong.sum(), 1)).tolist(),
    )


def _binned(values: Scores, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.histogram(values, edges)[0].astype(np.float64)
