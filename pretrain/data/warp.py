"""Random changes of shape for a whole batch: one map from places in the result to places in the picture, sampled once.

    turn, zoom, stretch, shear, shift -> perspective -> smooth bending

Only operations on single values are used where rows could meet (no batched products), so a row comes out the same,
bit for bit, in any batch.

Shapes: B images, H x W pixels, places from -1 to 1, K knots along each side.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.augment_config import AugmentConfig
from pretrain.data.dice import Dice

KNOTS = 4
"""Of the bending, along each side."""


def warp(pixels_BCHW: Tensor, config: AugmentConfig, dice: Dice) -> Tensor:
    """Moves pixels about; what comes from outside of a picture has the colour of its first corner.

    Args:
        pixels_BCHW: float [B, C, H, W].
    """
    height, width = pixels_BCHW.shape[-2:]
    x_BHW, y_BHW = _affine(*raster(height, width), width / height, config, dice)
    bend_B2KK = dice.normal(2, KNOTS, KNOTS) * (config.bend * dice.uniform(0, 1, 1, 1, 1))
    grid_BHW2 = torch.stack([x_BHW, y_BHW], -1)
    if config.bend:
        grid_BHW2 = grid_BHW2 + _smooth(bend_B2KK, height, width).permute(0, 2, 3, 1)
    corner_BC11 = pixels_BCHW[:, :, :1, :1]
    moved_BCHW = F.grid_sample(pixels_BCHW - corner_BC11, grid_BHW2, padding_mode="zeros", align_corners=False)
    return moved_BCHW + corner_BC11


def _smooth(knots_B2KK: Tensor, height: int, width: int) -> Tensor:
    """Interpolated to float [B, 2, H, W], one side after the other: between knots the weights go as a smooth step.

    Sums written out: torch's bicubic interpolation takes as long as sampling the images.
    """
    across_KW, down_KH = _weights(width), _weights(height)
    rows_B2KW = knots_B2KK[:, :, :, 0, None] * across_KW[0]
    for k in range(1, KNOTS):
        rows_B2KW = rows_B2KW + knots_B2KK[:, :, :, k, None] * across_KW[k]
    bend_B2HW = rows_B2KW[:, :, 0, None, :] * down_KH[0, :, None]
    for k in range(1, KNOTS):
        bend_B2HW = bend_B2HW + rows_B2KW[:, :, k, None, :] * down_KH[k, :, None]
    return bend_B2HW


def _weights(size: int) -> Tensor:
    """Of each knot at each of `size` places, float [K, S]; those of a place sum to 1."""
    steps_KS = F.interpolate(torch.eye(KNOTS)[None], size=size, mode="linear", align_corners=True)[0]
    return steps_KS.square() * (3 - 2 * steps_KS)


def raster(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Columns and rows of the centres of pixels, float [1, H, W] each."""
    down_H, across_W = (torch.linspace(-1 + 1 / size, 1 - 1 / size, size) for size in (height, width))
    rows_HW, columns_HW = torch.meshgrid(down_H, across_W, indexing="ij")
    return columns_HW[None], rows_HW[None]


def _affine(x_1HW: Tensor, y_1HW: Tensor, aspect: float, config: AugmentConfig, dice: Dice) -> tuple[Tensor, Tensor]:
    """Turns and shears as the eye sees it, whatever the aspect (width / height)."""
    turn_B11 = dice.uniform(-1, 1, 1, 1) * math.radians(config.rotate)
    zoom_B11, stretch_B11 = dice.factor(config.zoom, 1, 1), dice.factor(config.stretch, 1, 1)
    shear_B11 = dice.uniform(-1, 1, 1, 1) * config.shear
    right_B11, down_B11 = (dice.uniform(-1, 1, 1, 1) * 2 * config.shift for _ in range(2))
    tilt_B11, lean_B11 = (dice.uniform(-1, 1, 1, 1) * config.perspective for _ in range(2))
    sine_B11, cosine_B11 = turn_B11.sin(), turn_B11.cos()
    depth_BHW = 1 + tilt_B11 * x_1HW + lean_B11 * y_1HW
    sheared_BHW = x_1HW * aspect + shear_B11 * y_1HW
    turned_BHW = (cosine_B11 * sheared_BHW - sine_B11 * y_1HW) / aspect
    risen_BHW = sine_B11 * sheared_BHW + cosine_B11 * y_1HW
    across_BHW = (turned_BHW / (zoom_B11 * stretch_B11) + right_B11) / depth_BHW
    along_BHW = (risen_BHW / zoom_B11 * stretch_B11 + down_B11) / depth_BHW
    return across_BHW, along_BHW
