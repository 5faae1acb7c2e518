"""What names one region of an image, and where that is (X-VLM, arXiv:2111.08276).

Shapes: P tokens.
"""

from typing import NamedTuple

import numpy as np

from shards.decode import sample_size
from shards.sample import Sample


class Phrase(NamedTuple):
    """Token ids, int64 [P], and left, top, right, bottom as shares of the image, float32 [4]."""

    ids_P: np.ndarray
    box_4: np.ndarray


def draw_phrase(sample: Sample, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """Attributes and label of a random region, and its box, float32 [4]."""
    region = sample.regions[rng.integers(len(sample.regions))]
    width, height = sample_size(sample)
    box_4 = np.array(region.box, np.float32) / np.array([width, height, width, height], np.float32)
    return " ".join([*region.attributes, region.label]), box_4.clip(0, 1)
