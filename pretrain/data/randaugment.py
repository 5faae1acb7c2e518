"""RandAugment of one image (arXiv:1909.13719), with the ranges that ALBEF, BLIP, X-VLM, ViLT and METER share.

    image -> `operations` kinds drawn with repetition -> each done with a probability, all at one level

Shapes: H x W pixels.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pretrain.data.augment_config import Kind, RandAugmentConfig

Operation = Callable[[Image.Image, float, RandAugmentConfig], Image.Image]
"""(image, 1 or -1 for the direction, settings) -> image of the same size."""


def randaugment(pixels_HWC: np.ndarray, config: RandAugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Changed pixels, uint8 [H, W, 3]; what is done depends on `rng` alone, which gives three draws an operation."""
    image = Image.fromarray(pixels_HWC)
    for _ in range(config.operations):
        kind = config.kinds[int(rng.integers(len(config.kinds)))]
        done, sign = rng.random() < config.probability, 1.0 if rng.random() < 0.5 else -1.0
        if done:
            image = OPERATIONS[kind](image, sign, config)
    return np.array(image)


def _enhanced(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, sign, config: enhancer(image).enhance(0.1 + 1.8 * config.level)


def _posterized(image: Image.Image, sign: float, config: RandAugmentConfig) -> Image.Image:
    return ImageOps.posterize(image, max(1, int(4 * config.level)))


def _solarized(image: Image.Image, sign: float, config: RandAugmentConfig) -> Image.Image:
    return ImageOps.solarize(image, int(256 * config.level))


def _solarized_brighter(image: Image.Image, sign: float, config: RandAugmentConfig) -> Image.Image:
    return ImageOps.solarize(image.point(lambda value: value + int(110 * config.level)), 128)


def _rotated(image: Image.Image, sign: float, config: RandAugmentConfig) -> Image.Image:
    return image.rotate(sign * 30 * config.level, Image.Resampling.BILINEAR, fillcolor=(config.fill,) * 3)


def _moved(row: int, column: int, pixels: bool) -> Operation:
    """Moves along one axis, by so many pixels or by a share of the place on the other axis."""

    def move(image: Image.Image, sign: float, config: RandAugmentConfig) -> Image.Image:
        matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]  # by rows: where each pixel comes from
        matrix[3 * row + column] += sign * config.level * (config.translate if pixels else 0.3)
        grey = (config.fill,) * 3
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=grey)

    return move


OPERATIONS: dict[Kind, Operation] = {
    "identity": lambda image, sign, config: image,
    "autocontrast": lambda image, sign, config: ImageOps.autocontrast(image),
    "equalize": lambda image, sign, config: ImageOps.equalize(image),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "color": _enhanced(ImageEnhance.Color),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "posterize": _posterized,
    "solarize": _solarized,
    "solarize_add": _solarized_brighter,
    "rotate": _rotated,
    "shear_x": _moved(0, 1, pixels=False),
    "shear_y": _moved(1, 0, pixels=False),
    "translate_x": _moved(0, 2, pixels=True),
    "translate_y": _moved(1, 2, pixels=True),
}
