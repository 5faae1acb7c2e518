"""VSE++ (arXiv:1707.05612) and SCAN (arXiv:1803.08024).

Five captions of each image, taken by `5 * i`; `argsort(...)[::-1]`, so ties fall as an unstable sort leaves them. Over
five folds the line called `rsum` is six times the average image-to-text recall: text-to-image has no part in it.
"""

import numpy as np
from numpy.typing import NDArray

from finetune.compatibility.material import CAPTIONS, Material, Printed, Three, percent_below, reversed_argsort_places
from finetune.recall import Indices, Scores


def run(material: Material) -> Printed:
    """Figures of one gallery, or means over five folds."""
    texts_I5 = material.first(CAPTIONS)
    images = len(texts_I5)
    size = images // material.folds
    parts = [
        _fold(material.similarity_IT[start : start + size], texts_I5[start : start + size].ravel())
        for start in range(0, images, size)
    ]
    mean = np.mean(parts, axis=0)
    i2t, t2i = mean[:5], mean[5:]
    average_i2t, average_t2i = float(i2t[:3].mean()), float(t2i[:3].mean())
    rsum = 6 * average_i2t if material.folds > 1 else float(i2t[:3].sum() + t2i[:3].sum())
    lines = {"rsum": rsum, "Average i2t Recall": average_i2t, "Average t2i Recall": average_t2i}
    for way, figures in (("Image to text", i2t), ("Text to image", t2i)):
        for name, value in zip(("R@1", "R@5", "R@10", "median", "mean"), figures, strict=True):
            lines[f"{way} {name}"] = float(value)
    return Printed(_three(i2t), _three(t2i), lines)


def _three(figures: NDArray[np.float64]) -> Three:
    return float(figures[0]), float(figures[1]), float(figures[2])


def _fold(scores_IT: Scores, texts: Indices) -> list[float]:
    """R@1, R@5, R@10, median and mean rank both ways."""
    scores = scores_IT[:, texts]
    right = np.repeat(np.eye(len(scores), dtype=bool), CAPTIONS, axis=1)
    return [*_summary(reversed_argsort_places(scores, right)), *_summary(reversed_argsort_places(scores.T, right.T))]


def _summary(places_Q: Indices) -> list[float]:
    return [*percent_below(places_Q), float(np.floor(np.median(places_Q)) + 1), float(places_Q.mean() + 1)]
