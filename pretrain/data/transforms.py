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

from pretrain.config import AugmentConfig, ImageShapeConfig
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
    """A randomly changed view; uint8 [H, W, 3]. With every augmentation off it is `evaluation_pixels`."""
    decoded_HWC = decode_image(sample.image, sample.extension)
    if config.crop_scale < 1:
        height, width = decoded_HWC.shape[:2]
        decoded_HWC = crop(decoded_HWC, random_box(height, width, config.crop_scale, rng))
    pixels_HWC = _resized(decoded_HWC, shape)
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
    """Fills a box of up to a third of the shorter side with noise."""
    height, width = pixels_HWC.shape[:2]
    shorter = min(height, width)
    h, w = rng.integers(shorter // 8, shorter // 3 + 1, 2)
    top, left = rng.integers(height - h), rng.integers(width - w)
    erased_HWC = pixels_HWC.clone()
    erased_HWC[top : top + h, left : left + w] = torch.from_numpy(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
    return erased_HWC
