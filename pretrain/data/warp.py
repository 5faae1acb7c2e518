"""Random changes of shape for a whole batch: one map from places in the result to places in the picture, sampled once.

    turn, zoom, stretch, shear, shift -> perspective -> smooth bending

Only operations on single values are used where rows could meet (no batched products), so a row comes out the same,
bit for bit, in any batch.

Shapes: B images, S x S pixels, places from -1 to 1.
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
        pixels_BCHW: float [B, C, S, S].
    """
    size, count = pixels_BCHW.shape[-1], len(pixels_BCHW)
    x_BHW, y_BHW = _affine(*raster(size, pixels_BCHW.device), config, dice)
    bend_B2KK = dice.normal(2, KNOTS, KNOTS) * (config.bend * dice.uniform(0, 1, 1, 1, 1))
    grid_BHW2 = torch.stack([x_BHW, y_BHW], -1)
    if config.bend:
        grid_BHW2 = grid_BHW2 + _smooth(bend_B2KK, size).permute(0, 2, 3, 1)
    corner_BC11 = pixels_BCHW[:, :, :1, :1]
    moved_BCHW = F.grid_sample(pixels_BCHW - corner_BC11, grid_BHW2, padding_mode="zeros", align_corners=False)
    assert moved_BCHW.shape[0] == count
    return moved_BCHW + corner_BC11


def _smooth(knots_B2KK: Tensor, size: int) -> Tensor:
    """Interpolated to float [B, 2, S, S], one side after the other: between knots the weights go as a smooth step.

    Sums written out: torch's bicubic interpolation takes as long as sampling the images.
    """
    steps_KS = F.interpolate(torch.eye(KNOTS)[None], size=size, mode="linear", align_corners=True)[0]
    weights_KS = steps_KS.square() * (3 - 2 * steps_KS)
    rows_B2KS = knots_B2KK[:, :, :, 0, None] * weights_KS[0]
    for k in range(1, KNOTS):
        rows_B2KS = rows_B2KS + knots_B2KK[:, :, :, k, None] * weights_KS[k]
    grid_B2SS = rows_B2KS[:, :, 0, None, :] * weights_KS[0, :, None]
    for k in range(1, KNOTS):
        grid_B2SS = grid_B2SS + rows_B2KS[:, :, k, None, :] * weights_KS[k, :, None]
    return grid_B2SS


def raster(size: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Columns and rows of the centres of pixels, float [1, S, S] each."""
    centres_S = torch.linspace(-1 + 1 / size, 1 - 1 / size, size, device=device)
    rows_SS, columns_SS = torch.meshgrid(centres_S, centres_S, indexing="ij")
    return columns_SS[None], rows_SS[None]


def _affine(x_1SS: Tensor, y_1SS: Tensor, config: AugmentConfig, dice: Dice) -> tuple[Tensor, Tensor]:
    turn_B11 = dice.uniform(-1, 1, 1, 1) * math.radians(config.rotate)
    zoom_B11, stretch_B11 = dice.factor(config.zoom, 1, 1), dice.factor(config.stretch, 1, 1)
    shear_B11 = dice.uniform(-1, 1, 1, 1) * config.shear
    right_B11, down_B11 = (dice.uniform(-1, 1, 1, 1) * 2 * config.shift for _ in range(2))
    tilt_B11, lean_B11 = (dice.uniform(-1, 1, 1, 1) * config.perspective for _ in range(2))
    sine_B11, cosine_B11 = turn_B11.sin(), turn_B11.cos()
    depth_BSS = 1 + tilt_B11 * x_1SS + lean_B11 * y_1SS
    u_BSS, v_BSS = x_1SS + shear_B11 * y_1SS, y_1SS
    turned_BSS = cosine_B11 * u_BSS - sine_B11 * v_BSS
    risen_BSS = sine_B11 * u_BSS + cosine_B11 * v_BSS
    across_BSS = (turned_BSS / (zoom_B11 * stretch_B11) + right_B11) / depth_BSS
    along_BSS = (risen_BSS / zoom_B11 * stretch_B11 + down_B11) / depth_BSS
    return across_BSS, along_BSS
