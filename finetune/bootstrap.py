"""Confidence intervals of recalls, clustered by image: the captions of one image stand or fall together.

Images are drawn with replacement, each with all its captions; ranks are kept, so the gallery is taken as given and the
interval speaks of the queries alone. Taking captions as independent would make text-to-image intervals about a fifth
too narrow. With folds, each draws its own images, and the recalls are means over folds as in the headline.

The draws depend on the seed and the number of images alone. Two systems on the same set therefore meet the same draws,
and the difference of their draws is a paired bootstrap.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.query_ranks import QueryRanks
from finetune.recall import KS, Indices

DRAWS = 2000
CHUNK_DRAWS = 250  # x images counts are held at a time: 10 MB at 5,000 images
NAMES = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")
Interval = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """Percentile intervals (low, high) in percent."""

    i2t_r1: Interval
    i2t_r5: Interval
    i2t_r10: Interval
    t2i_r1: Interval
    t2i_r5: Interval
    t2i_r10: Interval
    rsum: Interval


def intervals(ranks: QueryRanks, folds: int = 1, level: float = 0.95, seed: int = 0) -> Intervals:
    """Of the pessimistic recalls, both directions drawn together."""
    return Intervals(*(percentiles(column, level) for column in draws(ranks, folds, seed).T))


def percentiles(values: NDArray[np.float64], level: float = 0.95) -> Interval:
    """The middle part that holds `level` of the values."""
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def draws(ranks: QueryRanks, folds: int = 1, seed: int = 0) -> NDArray[np.float64]:
    """The six recalls and RSUM of each draw in percent, in the order of NAMES, float64 [DRAWS, 7]."""
    statistics_IS = _statistics(ranks.i2t.pessimistic, ranks.t2i.pessimistic, ranks.image_T)
    parts = np.split(statistics_IS, folds)
    recalls = np.mean([_recalls(_draw(part, [seed, number]), len(part)) for number, part in enumerate(parts)], axis=0)
    return np.concatenate([recalls, recalls.sum(1, keepdims=True)], axis=1)


def _statistics(i2t_I: Indices, t2i_T: Indices, image_T: Indices) -> NDArray[np.float64]:
    """What is summed over images: hits at each K both ways, and the texts, float64 [I, 7]."""
    hits_IK = np.stack([i2t_I <= k for k in KS], 1).astype(np.float64)
    text_hits_IK = np.stack([np.bincount(image_T, t2i_T <= k, len(i2t_I)) for k in KS], 1)
    texts_I = np.bincount(image_T, minlength=len(i2t_I))
    return np.concatenate([hits_IK, text_hits_IK, texts_I[:, None]], 1)


def _recalls(totals: NDArray[np.float64], images: int) -> NDArray[np.float64]:
    return 100 * np.concatenate([totals[:, :3] / images, totals[:, 3:6] / totals[:, 6:]], axis=1)


def _draw(statistics_IS: NDArray[np.float64], seed: list[int]) -> NDArray[np.float64]:
    """Sums of the statistics over each resampled set of images, float64 [DRAWS, S]."""
    generator = np.random.default_rng(seed)
    images = len(statistics_IS)
    even = np.full(images, 1 / images)
    return np.concatenate(
        [generator.multinomial(images, even, size=CHUNK_DRAWS) @ statistics_IS for _ in range(DRAWS // CHUNK_DRAWS)]
    )
