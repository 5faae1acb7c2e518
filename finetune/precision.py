"""Where all the positives of a query stand, and what follows: R-Precision and mAP@R beside recall.

R is the number of positives of the query. R-Precision is the share of the first R that are right; mAP@R (Musgrave et
al., arXiv:2003.08505) also asks for their order: the mean over the first R places of the precision up to each right
one. Ties count against the system: of equal scores the wrong items come first.

Shapes: Q queries, G gallery items, k candidates, R positives of one query.
"""

import numpy as np

from finetune.recall import Indices, Scores


def places(scores_G: Scores, positives_R: Indices) -> Indices:
    """The places of a query's positives in the worst order of ties, int64 [R], ascending, 1 = first."""
    own_R = -np.sort(-scores_G[positives_R])
    at_least_R = np.count_nonzero(scores_G[:, None] >= own_R, axis=0)
    right_R = np.count_nonzero(own_R[:, None] >= own_R, axis=0)
    return np.arange(1, len(own_R) + 1) + at_least_R - right_R


def first_place(scores_G: Scores, positives_R: Indices) -> int:
    """The first of `places` alone."""
    own_R = scores_G[positives_R]
    best = own_R.max()
    return 1 + int(np.count_nonzero(scores_G >= best)) - int(np.count_nonzero(own_R == best))


def r_precision(places_R: Indices) -> float:
    """Share of the first R that are right, 0 to 1."""
    return float(np.mean(places_R <= len(places_R)))


def map_at_r(places_R: Indices) -> float:
    """Mean average precision at R, 0 to 1."""
    precision_R = np.arange(1, len(places_R) + 1) / places_R
    return float(np.sum(precision_R[places_R <= len(places_R)])) / len(places_R)


def ordered(first_QG: Scores, candidates_Qk: Indices, second_Qk: Scores) -> Scores:
    """One score that sorts as two stages do: candidates by the second above all others by the first, float64 [Q, G].

    A candidate gets its place among the distinct second scores, a whole number above every first score. Equal scores
    stay equal and others stay apart, which adding a constant would not promise.
    """
    scores_QG = first_QG.astype(np.float64)
    above = np.ceil(scores_QG.max()) + 1
    levels_Qk = np.stack([np.unique(row, return_inverse=True)[1] for row in second_Qk]).astype(np.float64)
    np.put_along_axis(scores_QG, candidates_Qk, above + levels_Qk, axis=1)
    return scores_QG
