"""From scores to ranks in both directions: a first stage over all pairs, then the matching head over each query's best
k.

The k candidates of a query are ordered by the matching score and stay above the rest, which keep their first-stage
order: nothing is filled with a constant and no score is shifted, since both make ties.

Shapes: I images, T texts, Q queries, G gallery items, k candidates, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from finetune.candidates import FirstStage, first_stage
from finetune.precision import ordered
from finetune.recall import Indices, Positives, Ranks, Scores, reranked_ranks
from finetune.retrieval import Fold
from finetune.score import Scorer, Similarity

SHOWN = 10  # candidates kept for the examples where nothing is re-ranked
ScoreName = Literal["itm", "itm+itc"]


@dataclass(frozen=True)
class Side:
    """One direction of one fold; `by_image` where images are the queries."""

    fold: Fold
    by_image: bool

    @property
    def queries(self) -> slice:
        return self.fold.images if self.by_image else self.fold.texts

    @property
    def gallery(self) -> slice:
        return self.fold.texts if self.by_image else self.fold.images

    @property
    def positives(self) -> Positives:
        return self.fold.i2t if self.by_image else self.fold.t2i

    def scores(self, similarity: Similarity) -> Scores:
        """This fold's part of the side that asks, [Q, G], without a copy."""
        whole_IT = similarity.by_image_IT if self.by_image else similarity.by_text_IT
        part = whole_IT[self.fold.images, self.fold.texts]
        return part if self.by_image else part.T

    def pairs(self, candidates_Qk: Indices) -> tuple[Indices, Indices]:
        """Every query with every candidate: images and texts by their place in the whole set, int64 [Q * k] each."""
        query_P = self.queries.start + np.repeat(np.arange(len(candidates_Qk)), candidates_Qk.shape[1])
        item_P = self.gallery.start + candidates_Qk.ravel()
        return (query_P, item_P) if self.by_image else (item_P, query_P)


@dataclass(frozen=True)
class Ranked:
    """A side with its ranks.

    Attributes:
        cosine_Qk: What chose the candidates.
        scores_Qk: What ordered them: the matching score, or the cosine again.
    """

    side: Side
    stage: FirstStage
    cosine_Qk: Scores
    scores_Qk: Scores
    ranks: Ranks
    reranked: bool

    def best(self, query: int, count: int) -> list[tuple[int, float]]:
        """The first gallery items of a query, by place in the whole set, with their scores; equal scores by place."""
        order = np.argsort(-self.scores_Qk[query], kind="stable")[:count]
        items = self.side.gallery.start + self.stage.candidates_Qk[query, order]
        return [(int(item), float(score)) for item, score in zip(items, self.scores_Qk[query, order], strict=True)]

    def ordered(self, first_QG: Scores, rows: slice) -> Scores:
        """Scores that sort some queries' whole gallery as it was ranked, float [Q, G].

        Args:
            first_QG: The first stage's scores of this side.
        """
        if not self.reranked:
            return first_QG[rows]
        return ordered(first_QG[rows], self.stage.candidates_Qk[rows], self.scores_Qk[rows])


def rank(scorer: Scorer, similarity: Similarity, sides: Sequence[Side], k: int, score: ScoreName) -> list[Ranked]:
    """Ranks every query of every side.

    Args:
        similarity: What `scorer.similarity` gave, or another score of all pairs.
        k: Candidates to re-rank; 0 leaves the first stage as it is.
        score: `itm` is the matching log-odds alone; `itm+itc` adds the cosine (as BLIP).
    """
    stages = [first_stage(side.scores(similarity), side.positives, k or SHOWN) for side in sides]
    cosines = [
        np.take_along_axis(side.scores(similarity), stage.candidates_Qk, 1)
        for side, stage in zip(sides, stages, strict=True)
    ]
    if not k:
        parts = zip(sides, stages, cosines, strict=True)
        return [Ranked(side, stage, cosine, cosine, stage.ranks, reranked=False) for side, stage, cosine in parts]
    matched = _match(scorer, sides, stages)
    parts4 = zip(sides, stages, cosines, matched, strict=True)
    return [_reranked(side, stage, c, m + c if score == "itm+itc" else m) for side, stage, c, m in parts4]


def _match(scorer: Scorer, sides: Sequence[Side], stages: Sequence[FirstStage]) -> list[Scores]:
    """All sides in one pass, since the two directions share many pairs."""
    pairs = [side.pairs(stage.candidates_Qk) for side, stage in zip(sides, stages, strict=True)]
    image_P, text_P = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    ends = np.cumsum([len(images) for images, _ in pairs])[:-1]
    parts = np.split(scorer.matching(image_P, text_P), ends)
    return [part.reshape(stage.candidates_Qk.shape) for part, stage in zip(parts, stages, strict=True)]


def _reranked(side: Side, stage: FirstStage, cosine_Qk: Scores, scores_Qk: Scores) -> Ranked:
    found = reranked_ranks(stage.ranks, side.positives, stage.candidates_Qk, stage.tied_Q, scores_Qk)
    return Ranked(side, stage, cosine_Qk, scores_Qk, found, reranked=True)
