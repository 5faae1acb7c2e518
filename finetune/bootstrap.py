"""Confidence intervals of recalls, clustered by image: the captions of one image stand or fall together.

Images are drawn with replacement, each with all its captions; ranks are kept, so the gallery is taken as given and the
interval speaks of the queries alone. Taking captions as independent would make text-to-image intervals about a fifth
too narrow.
"""

from dataclasses import dataclass

import numpy as np

from finetune.recall import KS, Indices

DRAWS = 2000
CHUNK_DRAWS = 250  # x images counts are held at a time: 10 MB at 5,000 images


@dataclass(frozen=True)
class Intervals:
    """Percentile intervals (low, high) in percent."""

    i2t_r1: tuple[float, float]
    t2i_r1: tuple[float, float]
    rsum: tuple[float, float]


def intervals(i2t_I: Indices, t2i_T: Indices, image_T: Indices, level: float = 0.95, seed: int = 0) -> Intervals:
    """Bootstraps both directions together.

    Args:
        i2t_I: int64 [I], rank of each image's first right text.
        t2i_T: int64 [T], rank of each text's image.
        image_T: int64 [T], the image of each text.
    """
    hits_IK = np.stack([i2t_I <= k for k in KS], 1).astype(np.float64)
    text_hits_TK = np.stack([t2i_T <= k for k in KS], 1).astype(np.float64)
    text_hits_IK = np.stack([np.bincount(image_T, column, len(i2t_I)) for column in text_hits_TK.T], 1)
    texts_I = np.bincount(image_T, minlength=len(i2t_I))
    totals = _draw(np.concatenate([hits_IK, text_hits_IK, texts_I[:, None]], 1), seed)
    i2t = 100 * totals[:, :3] / len(i2t_I)
    t2i = 100 * totals[:, 3:6] / totals[:, 6:]
    tails = [50 * (1 - level), 50 * (1 + level)]
    bounds = [np.percentile(values, tails) for values in (i2t[:, 0], t2i[:, 0], i2t.sum(1) + t2i.sum(1))]
    return Intervals(*((float(low), float(high)) for low, high in bounds))


def _draw(statistics_IS: np.ndarray, seed: int) -> np.ndarray:
    """Sums of the statistics over each resampled set of images, float64 [DRAWS, S]."""
    generator = np.random.default_rng(seed)
    images = len(statistics_IS)
    even = np.full(images, 1 / images)
    return np.concatenate(
        [generator.multinomial(images, even, size=CHUNK_DRAWS) @ statistics_IS for _ in range(DRAWS // CHUNK_DRAWS)]
    )
