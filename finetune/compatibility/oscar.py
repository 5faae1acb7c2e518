"""Oscar (arXiv:2004.06165), and VinVL (arXiv:2101.00529) after it.

Every pair of an image with five captions of each; COCO 1K is one fixed list of 1,000 images from a key file, not five
folds. Ties fall as `argsort(...)[::-1]` leaves them.
"""

import numpy as np

from finetune.compatibility.material import CAPTIONS, Material, Printed, percent_below, reversed_argsort_places


def run(material: Material) -> Printed:
    """Figures over the images of the list, or over all where none is given."""
    texts_I5 = material.first(CAPTIONS)
    images = np.arange(len(texts_I5)) if material.subset is None else material.subset
    texts = texts_I5[images].ravel()
    scores = material.every_pair()[np.ix_(images, texts)]
    right = np.repeat(np.eye(len(images), dtype=bool), CAPTIONS, axis=1)
    i2t = percent_below(reversed_argsort_places(scores, right))
    t2i = percent_below(reversed_argsort_places(scores.T, right.T))
    names = [f"{way} R@{k}" for way in ("i2t_retrieval", "t2i_retrieval") for k in (1, 5, 10)]
    return Printed(i2t, t2i, dict(zip(names, [value / 100 for value in (*i2t, *t2i)], strict=True)))
