"""Recall at K from a score matrix: ragged positives, both tie rules, exact and chunked.

Shapes: Q queries, G gallery items, k re-ranked candidates per query. Ranks start at 1.

The rank of a query is the place of its first positive. Let s be the best score among its positives:

- optimistic: 1 + the non-positives that score higher than s, as if s won every tie;
- pessimistic (the headline): 1 + the non-positives that score at least s, as if it lost every tie.

Whatever way ties are broken, the place is between the two. A positive that ties with another positive of the same query
costs nothing: one of them comes first in any order, and one is enough. (Were positives to push each other down, an
image with the same caption twice would stand at rank 2 although every order puts a right text first.)

Left out: mean average precision, and the modes that reproduce other projects' evaluators.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
Indices = NDArray[np.int64]
KS = (1, 5, 10)
CHUNK_ELEMENTS = (
    8_000_000  # of a score matrix looked at together: 32 MB of float32 and as much again for what is compared
)


@dataclass(frozen=True)
class Ranks:
    """Place of the first positive of each query under both tie rules, int64 [Q], 1 = first."""

    optimistic: Indices
    pessimistic: Indices


@dataclass(frozen=True)
class Recall:
    """Recall at 1, 5 and 10 in percent, and the median and mean rank."""

    r1: float
    r5: float
    r10: float
    median: float
    mean: float

    @classmethod
    def of(cls, ranks_Q: Indices) -> "Recall":
        """Summarises one direction under one tie rule."""
        r1, r5, r10 = (recall_at(ranks_Q, k) for k in KS)
        return cls(r1, r5, r10, float(np.median(ranks_Q)), float(np.mean(ranks_Q)))

    @classmethod
    def mean_of(cls, folds: Sequence["Recall"]) -> "Recall":
        """The mean over folds, field by field: how COCO 1K is reported."""
        return cls(*(float(np.mean([getattr(fold, f.name) for fold in folds])) for f in fields(cls)))

    @property
    def sum(self) -> float:
        return self.r1 + self.r5 + self.r10


class Positives:
    """Which gallery items are right for each query: any number above zero, kept flat.

    Attributes:
        items_P: int64 [P], the positives of query 0, then of query 1, and so on.
        query_P: int64 [P], whose they are.
        starts_Q: int64 [Q], where each query's run begins.
    """

    def __init__(self, lists: Sequence[Sequence[int]] | Sequence[Indices]) -> None:
        """Raises ValueError where a query has no positive or names one twice."""
        counts_Q = np.array([len(items) for items in lists], np.int64)
        if not counts_Q.all() or not len(counts_Q):
            raise ValueError(f"query {int(np.argmin(counts_Q)) if len(counts_Q) else 0} has no positive")
        self.items_P: Indices = np.concatenate([np.asarray(items, np.int64) for items in lists])
        self.query_P: Indices = np.repeat(np.arange(len(lists)), counts_Q)
        self.starts_Q: Indices = np.concatenate([[0], np.cumsum(counts_Q)[:-1]]).astype(np.int64)
        order = np.lexsort((self.items_P, self.query_P))
        twice_P = (np.diff(self.items_P[order]) == 0) & (np.diff(self.query_P) == 0)
        if twice_P.any():
            raise ValueError(f"query {self.query_P[np.argmax(twice_P)]} names one of its positives twice")

    def __len__(self) -> int:
        return len(self.starts_Q)


def ranks(scores_QG: Scores, positives: Positives) -> Ranks:
    """Ranks every query against the whole gallery.

    One threshold per query and two comparisons per score: nothing is sorted, and a transposed view costs no copy of the
    matrix.

    Args:
        scores_QG: float32 or float64 [Q, G], higher is better.

    Raises:
        ValueError: half precision (its ties are artefacts), a score that is not finite, or positives of another shape.
    """
    _check(scores_QG, positives)
    best_Q = best_positive(scores_QG, positives)
    higher_Q = np.empty(len(best_Q), np.int64)
    at_least_Q = np.empty(len(best_Q), np.int64)
    for rows in chunks(*scores_QG.shape):
        chunk = scores_QG[rows]
        if not np.isfinite(chunk).all():
            raise ValueError(f"the scores of queries {rows.start} to {rows.stop - 1} are not all finite")
        higher_Q[rows] = np.count_nonzero(chunk > best_Q[rows, None], axis=1)
        at_least_Q[rows] = np.count_nonzero(chunk >= best_Q[rows, None], axis=1)
    level_P = scores_QG[positives.query_P, positives.items_P] == best_Q[positives.query_P]
    own_Q = np.add.reduceat(level_P.astype(np.int64), positives.starts_Q)
    return Ranks(optimistic=1 + higher_Q, pessimistic=1 + at_least_Q - own_Q)


def reranked_ranks(
    first_stage: Ranks, positives: Positives, candidates_Qk: Indices, tied_Q: Indices, scores_Qk: Scores
) -> Ranks:
    """Ranks where the best k of the first stage are ordered again by a second score and stay above all the others.

    The two scores are compared in turn and never added or shifted, so re-ranking makes no ties by rounding. A query
    without a positive among its candidates has all k ahead, and below them the order of the first stage.

    Args:
        first_stage: Ranks of the scores that chose the candidates.
        candidates_Qk: int64 [Q, k], gallery items.
        tied_Q: int64 [Q], how many candidates have the first-stage score of the best positive; they are ahead for
            certain where that positive was not chosen.
        scores_Qk: float [Q, k], the second score.

    Raises:
        ValueError: a score that is not finite.
    """
    if not np.isfinite(scores_Qk).all():
        raise ValueError("the re-ranking scores are not all finite")
    right_Qk = is_positive(candidates_Qk, positives)
    best_Q1 = np.where(right_Qk, scores_Qk, -np.inf).max(axis=1, keepdims=True)
    higher_Q = ((scores_Qk > best_Q1) & ~right_Qk).sum(axis=1)
    at_least_Q = ((scores_Qk >= best_Q1) & ~right_Qk).sum(axis=1)
    found_Q = right_Qk.any(axis=1)
    return Ranks(
        optimistic=np.where(found_Q, 1 + higher_Q, first_stage.optimistic + tied_Q),
        pessimistic=np.where(found_Q, 1 + at_least_Q, first_stage.pessimistic),
    )


def best_positive(scores_QG: Scores, positives: Positives) -> Scores:
    """The highest score among each query's positives, [Q]."""
    return np.maximum.reduceat(scores_QG[positives.query_P, positives.items_P], positives.starts_Q)


def is_positive(items_Qk: Indices, positives: Positives) -> NDArray[np.bool_]:
    """Which of the given gallery items are right for their query, bool [Q, k]."""
    gallery = 1 + max(int(items_Qk.max()), int(positives.items_P.max()))
    pairs_P = positives.query_P * gallery + positives.items_P
    return np.isin(np.arange(len(items_Qk))[:, None] * gallery + items_Qk, pairs_P)


def recall_at(ranks_Q: Indices, k: int) -> float:
    """Percent of the queries whose first positive is among the first k."""
    return 100.0 * float(np.mean(ranks_Q <= k))


def tied_fraction(ranks: Ranks) -> float:
    """Fraction of the queries whose best positive ties with a wrong item, so that its place depends on the tie rule."""
    return float(np.mean(ranks.optimistic != ranks.pessimistic))


def chunks(queries: int, gallery: int) -> Iterator[slice]:
    """Slices of queries that together hold about CHUNK_ELEMENTS scores."""
    step = max(1, CHUNK_ELEMENTS // max(1, gallery))
    return (slice(start, min(start + step, queries)) for start in range(0, queries, step))


def _check(scores_QG: Scores, positives: Positives) -> None:
    if scores_QG.dtype not in (np.float32, np.float64):
        raise ValueError(f"`scores` ({scores_QG.dtype}) must be float32 or float64")
    if scores_QG.ndim != 2 or len(scores_QG) != len(positives):
        raise ValueError(f"`scores` (shape {scores_QG.shape}) must have one row for each of {len(positives)} queries")
    if positives.items_P.min() < 0 or positives.items_P.max() >= scores_QG.shape[1]:
        raise ValueError(f"a positive is outside the gallery of {scores_QG.shape[1]}")
