"""Stored image to the pixels that a model sees: uint8 in, uint8 out; the model normalises.

Every random choice comes from the generator that is passed in, which is a function of the sample's place in the order.
What can be done to a whole batch at once is in `pretrain.data.augment`.
"""

import math

import numpy as np
from torch import Tensor

from pretrain.data.augment_config import AugmentConfig
from shards.decode import decode_image, resize
from shards.sample import Sample


def evaluation_pixels(sample: Sample, image_size: int) -> Tensor:
    """The whole image squashed to a square, as ALBEF and BLIP evaluate; uint8 [S, S, 3]."""
    return _square(decode_image(sample.image, sample.extension), image_size)


def cropped_pixels(sample: Sample, image_size: int, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """A random part of the image squashed to a square; uint8 [S, S, 3]."""
    decoded_HWC = decode_image(sample.image, sample.extension)
    return _square(_random_area(decoded_HWC, config.crop_scale, rng), image_size)


def _square(decoded_HWC: np.ndarray, image_size: int) -> Tensor:
    return resize(decoded_HWC, image_size).permute(1, 2, 0)  # a view: it is channels_last in memory


def _random_area(pixels_HWC: np.ndarray, smallest: float, rng: np.random.Generator) -> np.ndarray:
    """A box of a share of the area in [smallest, 1] and an aspect of 3/4 to 4/3 of the image's own."""
    height, width = pixels_HWC.shape[:2]
    area, stretch = rng.uniform(smallest, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    h = min(height, max(1, round(height * math.sqrt(area / stretch))))
    w = min(width, max(1, round(width * math.sqrt(area * stretch))))
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return pixels_HWC[top : top + h, left : left + w]
