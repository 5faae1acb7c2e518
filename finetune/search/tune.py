"""How much of exact search a first stage finds, measured with text queries, and how hard it has to try.

Half of the queries choose the effort, the other half are measured with it: a figure on the queries that chose it would
flatter.
"""

import time

import numpy as np

from finetune.recall import Scores, chunks
from finetune.search.nearest import Embeddings, Exact, Nearest, ranked
from pretrain.settings import Section

K = 10
MOST_QUERIES, FEWEST_QUERIES, TIMED = 2000, 20, 50
ROUNDING = 1e-6  # float32 sums of unit vectors differ by their order


class Agreement(Section):
    """Recall at 10 against exact search.

    Attributes:
        queries: Texts that were measured.
        found: Share of the exact first ten that the search returns.
        unrefined: The same for the first stage's own first ten, without exact scores of its candidates.
        milliseconds, exact_milliseconds: Median time of one query, without encoding its text.
    """

    queries: int
    found: float
    unrefined: float
    milliseconds: float
    exact_milliseconds: float


def tune(
    nearest: Nearest, query_QE: Embeddings, embedding_IE: Embeddings, target: float
) -> tuple[int, Agreement | None]:
    """The least effort that reaches `target` on half of the queries, and what the other half says of it.

    The largest effort where none reaches it; the default and None where there are fewer than 20 queries.
    """
    if len(query_QE) < FEWEST_QUERIES:
        return nearest.default, None
    query_QE = query_QE[np.linspace(0, len(query_QE) - 1, min(len(query_QE), MOST_QUERIES)).round().astype(int)]
    chosen_by, measured_on = query_QE[::2], query_QE[1::2]
    threshold_Q = tenth_scores(chosen_by, embedding_IE)
    for effort in nearest.efforts:
        if share_found(nearest, chosen_by, embedding_IE, threshold_Q, effort) >= target:
            break
    return effort, measure(nearest, measured_on, embedding_IE, effort)


def measure(nearest: Nearest, query_QE: Embeddings, embedding_IE: Embeddings, effort: int) -> Agreement:
    """The figures at one effort."""
    threshold_Q = tenth_scores(query_QE, embedding_IE)
    return Agreement(
        queries=len(query_QE),
        found=share_found(nearest, query_QE, embedding_IE, threshold_Q, effort),
        unrefined=share_found(nearest, query_QE, embedding_IE, threshold_Q, effort, refine=False),
        milliseconds=_milliseconds(nearest, query_QE[:TIMED], embedding_IE, effort),
        exact_milliseconds=_milliseconds(Exact(embedding_IE), query_QE[:TIMED], embedding_IE, 0),
    )


def tenth_scores(query_QE: Embeddings, embedding_IE: Embeddings) -> Scores:
    """The score of each query's tenth image by exact search: what scores as much is as good, so ties cost nothing."""
    place = max(len(embedding_IE) - K, 0)
    parts = [
        np.partition(query_QE[rows] @ embedding_IE.T, place, axis=1)[:, place]
        for rows in chunks(len(query_QE), len(embedding_IE))
    ]
    return np.concatenate(parts)


def share_found(
    nearest: Nearest,
    query_QE: Embeddings,
    embedding_IE: Embeddings,
    threshold_Q: Scores,
    effort: int,
    refine: bool = True,
) -> float:
    """Share of the exact first ten among the ten that `nearest` returns."""
    k = min(K, len(embedding_IE))
    found = []
    for rows in chunks(len(query_QE), len(embedding_IE)):
        candidate_QC = nearest.candidates(query_QE[rows], k, effort)
        hits = ranked(candidate_QC if refine else candidate_QC[:, :k], query_QE[rows], embedding_IE, k)
        lowest_Q = threshold_Q[rows] - ROUNDING
        found += [np.count_nonzero(scores >= lowest) for (_, scores), lowest in zip(hits, lowest_Q, strict=True)]
    return sum(found) / (k * len(query_QE))


def _milliseconds(nearest: Nearest, query_QE: Embeddings, embedding_IE: Embeddings, effort: int) -> float:
    times: list[float] = []
    for query_1E in np.split(query_QE, len(query_QE)):
        start = time.perf_counter()
        ranked(nearest.candidates(query_1E, K, effort), query_1E, embedding_IE, K)
        times.append(time.perf_counter() - start)
    return round(1000 * float(np.median(times)), 3)
