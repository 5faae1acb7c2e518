"""What a mode works on, and what it gives back.

Shapes: I images, T texts, k candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune.recall import Indices, Scores

Needs = Literal["similarity", "candidates", "every pair"]
Three = tuple[float, float, float]
CAPTIONS = 5  # of an image, that codes with `5 * i` in them count on


@dataclass(frozen=True)
class Printed:
    """What the code prints.

    Attributes:
        i2t, t2i: Recall at 1, 5 and 10 in percent; fewer where the code prints fewer.
        lines: Every figure that it prints, under its own names and in its own units.
    """

    i2t: Three
    t2i: Three
    lines: dict[str, float]


@dataclass(frozen=True)
class Material:
    """A retrieval set with its scores.

    Attributes:
        similarity_IT: float32, cosine of every pair.
        image_T: int64, the image of each text.
        texts: T strings.
        folds: 5 where COCO 1K was asked for.
        k: Candidates of the second stage.
        subset: The images of a fixed list, where one was given.
        embeddings: Of images and texts, float32 [I, E] and [T, E].
        every_logit_IT: Logit of a match of every pair, float32, where they have been scored already; NaN across folds
            where no mode `asks_whole`.
        logits: (image_P, text_P) -> logit of a match, float32 [P]; None where the model has no matching head.
    """

    similarity_IT: Scores
    image_T: Indices
    texts: Sequence[str]
    folds: int = 1
    k: int = 0
    subset: Indices | None = None
    embeddings: tuple[Scores, Scores] | None = None
    every_logit_IT: Scores | None = None
    logits: Callable[[Indices, Indices], Scores] | None = None

    def every_pair(self) -> Scores:
        """The score of a model that reads image and text together, float32 [I, T]; of a dual encoder the cosine."""
        if self.every_logit_IT is not None:
            return self.every_logit_IT
        if self.logits is None:
            return self.similarity_IT
        image, text = (index.ravel() for index in np.indices(self.similarity_IT.shape))
        return self.logits(image, text).reshape(self.similarity_IT.shape)

    def first(self, count: int) -> Indices:
        """The places of the first `count` texts of each image, int64 [I, count]; every image must have them."""
        starts = np.flatnonzero(np.diff(self.image_T, prepend=-1))
        return starts[:, None] + np.arange(count)


@dataclass(frozen=True)
class Mode:
    """A published evaluator: what it needs, in one line what it does differently, and captions each image must have."""

    needs: Needs
    difference: str
    run: Callable[[Material], Printed]
    captions: int = 1


def reversed_argsort_places(scores_QG: Scores, right_QG: NDArray[np.bool_]) -> Indices:
    """Places of the first right item, from 0, after `argsort(scores)[::-1]`: an unstable sort turned round."""
    return np.array(
        [
            int(np.argmax(right_G[np.argsort(score_G)[::-1]]))
            for score_G, right_G in zip(scores_QG, right_QG, strict=True)
        ]
    )


def percent_below(places_Q: Indices) -> Three:
    """Recall at 1, 5 and 10 of places from 0."""
    return percent([float(np.mean(places_Q < k)) for k in (1, 5, 10)])


def percent(shares: Sequence[float]) -> Three:
    """Three shares of one as percent."""
    r1, r5, r10 = (100.0 * share for share in shares)
    return r1, r5, r10


def means(i2t: Sequence[float], t2i: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """The nine figures that UNITER's, ALBEF's and BLIP's codes print."""
    names = [f"{side}_r{k}" for side in ("txt", "img") for k in (1, 5, 10)]
    lines = dict(zip(names, [value * scale for value in (*i2t, *t2i)], strict=True))
    txt, img = (float(np.mean([lines[f"{side}_r{k}"] for k in (1, 5, 10)])) for side in ("txt", "img"))
    return lines | {"txt_r_mean": txt, "img_r_mean": img, "r_mean": (txt + img) / 2}
