"""Stored image to the pixels that a model sees: uint8 in, uint8 out; the model normalises.

Every random choice comes from the generator that is passed in, which is a function of the sample's place in the order.
What can be done to a whole batch at once is in `pretrain.data.augment`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from pretrain.config import ImageShapeConfig
from pretrain.data.augment_config import AugmentConfig
from pretrain.data.randaugment import randaugment
from pretrain.data.shapes import kept_size
from shards.decode import decode_image, resize
from shards.sample import Sample

Shape = int | ImageShapeConfig
"""The side of a square, or how the aspect is kept."""


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def evaluation_pixels(sample: Sample, shape: Shape) -> Tensor:
    """The whole image, uint8 [H, W, 3]: squashed to a square as ALBEF and BLIP evaluate, or in its own aspect."""
    return _resized(decode_image(sample.image, sample.extension), shape)


def training_pixels(sample: Sample, shape: Shape, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """A random part of the image, changed as `config` says; uint8 [H, W, 3]. With all off it is `evaluation_pixels`."""
    decoded_HWC = decode_image(sample.image, sample.extension)
    if config.randaugment and config.randaugment.whole:
        decoded_HWC = randaugment(decoded_HWC, config.randaugment, rng)
    if config.crop_scale < 1:
        height, width = decoded_HWC.shape[:2]
        decoded_HWC = crop(decoded_HWC, random_box(height, width, config.crop_scale, rng))
    return changed(_resized(decoded_HWC, shape), config, rng)


def changed(pixels_HWC: Tensor, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """What is done to an image of the model's size: mirrored half of the time, then RandAugment."""
    if config.flip and rng.random() < 0.5:
        pixels_HWC = pixels_HWC.flip(1)
    if config.randaugment and not config.randaugment.whole:
        return torch.from_numpy(randaugment(pixels_HWC.numpy(), config.randaugment, rng))
    return pixels_HWC.contiguous()


def stack_pixels(pixels: list[Tensor]) -> Tensor:
    """[S, S, 3] each to [B, S, S, 3]; in a loader's worker straight into memory that the consumer shares."""
    return default_collate(pixels)


def crop(pixels_HWC: np.ndarray, box: Box) -> np.ndarray:
    """The part of the image, as a view."""
    return pixels_HWC[box.top : box.top + box.height, box.left : box.left + box.width]


def _resized(decoded_HWC: np.ndarray, shape: Shape) -> Tensor:
    height, width = decoded_HWC.shape[:2]
    size = shape if isinstance(shape, int) else kept_size(height, width, shape)
    return resize(decoded_HWC, size).permute(1, 2, 0)  # a view: it is channels_last in memory


def random_box(height: int, width: int, smallest: float, rng: np.random.Generator) -> Box:
    """A share of the area in [smallest, 1] and an aspect of 3/4 to 4/3 of the image's own."""
    area, stretch = rng.uniform(smallest, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    h = min(height, max(1, round(height * math.sqrt(area / stretch))))
    w = min(width, max(1, round(width * math.sqrt(area * stretch))))
    return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
