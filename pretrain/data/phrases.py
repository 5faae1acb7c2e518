"""What names one region of an image, and where that is (X-VLM, arXiv:2111.08276).

Shapes: P tokens.
"""

from typing import NamedTuple

import numpy as np

from shards.decode import sample_size
from shards.sample import Sample


class Phrase(NamedTuple):
    """What names a region, its words' group, and where that is.

    Attributes:
        ids_P, masked_ids_P, labels_P: int64 [P], as the fields of `pretrain.batch.Batch`.
        box_4: float32 [4], left, top, right, bottom as shares of the image.
    """

    ids_P: np.ndarray
    masked_ids_P: np.ndarray
    labels_P: np.ndarray
    group: int
    box_4: np.ndarray


def draw_phrase(sample: Sample, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """Attributes and label of a random region, and its box, float32 [4]."""
    region = sample.regions[rng.integers(len(sample.regions))]
    width, height = sample_size(sample)
    box_4 = np.array(region.box, np.float32) / np.array([width, height, width, height], np.float32)
    return " ".join([*region.attributes, region.label]), box_4.clip(0, 1)
