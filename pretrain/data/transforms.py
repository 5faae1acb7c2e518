"""Stored image to the pixels that a model sees: uint8 in, uint8 out; the model normalises.

Every random choice comes from the generator that is passed in, which is a function of the sample's place in the order.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor
from torch.utils.data import default_collate

from pretrain.config import AugmentConfig
from shards.decode import decode_image, resize
from shards.sample import Sample


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def evaluation_pixels(sample: Sample, image_size: int) -> Tensor:
    """The whole image squashed to a square, as ALBEF and BLIP evaluate; uint8 [S, S, 3]."""
    return _square(decode_image(sample.image, sample.extension), image_size)


def training_pixels(sample: Sample, image_size: int, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """A randomly changed view; uint8 [S, S, 3]. With every augmentation off it is `evaluation_pixels`."""
    decoded_HWC = decode_image(sample.image, sample.extension)
    if config.crop_scale < 1:
        height, width = decoded_HWC.shape[:2]
        decoded_HWC = crop(decoded_HWC, random_box(height, width, config.crop_scale, rng))
    pixels_HWC = _square(decoded_HWC, image_size)
    if config.flip and rng.random() < 0.5:
        pixels_HWC = pixels_HWC.flip(1)
    if config.rotate:
        pixels_HWC = _rotate(pixels_HWC, rng.uniform(-config.rotate, config.rotate))
    if config.color:
        pixels_HWC = _jitter(pixels_HWC, config.color, rng)
    if config.erase and rng.random() < config.erase:
        pixels_HWC = _erase(pixels_HWC, rng)
    return pixels_HWC.contiguous()


def stack_pixels(pixels: list[Tensor]) -> Tensor:
    """[S, S, 3] each to [B, S, S, 3]; in a loader's worker straight into memory that the consumer shares."""
    return default_collate(pixels)


def crop(pixels_HWC: np.ndarray, box: Box) -> np.ndarray:
    """The part of the image, as a view."""
    return pixels_HWC[box.top : box.top + box.height, box.left : box.left + box.width]


def _square(decoded_HWC: np.ndarray, image_size: int) -> Tensor:
    return resize(decoded_HWC, image_size).permute(1, 2, 0)  # a view: it is channels_last in memory


def random_box(height: int, width: int, smallest: float, rng: np.random.Generator) -> Box:
    """A share of the area in [smallest, 1] and an aspect of 3/4 to 4/3 of the image's own."""
    area, stretch = rng.uniform(smallest, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    h = min(height, max(1, round(height * math.sqrt(area / stretch))))
    w = min(width, max(1, round(width * math.sqrt(area * stretch))))
    return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)


def _rotate(pixels_HWC: Tensor, degrees: float) -> Tensor:
    corner = pixels_HWC[0, 0].tolist()
    turned_CHW = TF.rotate(pixels_HWC.permute(2, 0, 1), degrees, TF.InterpolationMode.BILINEAR, fill=corner)
    return turned_CHW.permute(1, 2, 0)


def _jitter(pixels_HWC: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation, each by a factor in [1 - strength, 1 + strength]."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    x_HWC = pixels_HWC.float() * brightness
    x_HWC = (x_HWC - x_HWC.mean()) * contrast + x_HWC.mean()
    grey_HW1 = x_HWC.mean(2, keepdim=True)
    return ((x_HWC - grey_HW1) * saturation + grey_HW1).round().clamp(0, 255).to(torch.uint8)


def _erase(pixels_HWC: Tensor, rng: np.random.Generator) -> Tensor:
    """Fills a box of up to a third of each side with noise."""
    size = pixels_HWC.shape[0]
    h, w = rng.integers(size // 8, size // 3 + 1, 2)
    top, left = rng.integers(size - h), rng.integers(size - w)
    erased_HWC = pixels_HWC.clone()
    erased_HWC[top : top + h, left : left + w] = torch.from_numpy(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
    return erased_HWC
