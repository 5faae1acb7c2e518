"""Random changes of colour for a whole batch.

    hue, saturation, mixed channels, contrast, brightness: one 3 x 3 matrix per image
    -> gamma -> a linear light -> posterized, solarized, inverted

Shapes: B images, S x S pixels in [0, 1].
"""

import math

import torch
from torch import Tensor

from pretrain.data.augment_config import AugmentConfig
from pretrain.data.dice import Dice
from pretrain.data.warp import raster

LUMINANCE = (0.299, 0.587, 0.114)
GREY_AXIS = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
"""The cross product with the direction of grey, around which hues turn."""


def recolour(pixels_B3SS: Tensor, config: AugmentConfig, dice: Dice) -> Tensor:
    """Returns float [B, 3, S, S] in [0, 1]."""
    matrix_B33 = _matrix(config, dice)
    middle_B111 = dice.uniform(0.3, 0.7, 1, 1, 1)
    shifted_B111 = middle_B111 + dice.uniform(-1, 1, 1, 1, 1) * config.color / 2
    mixed_B3SS = (_mixed(matrix_B33, pixels_B3SS - middle_B111) + shifted_B111).clamp(0, 1)
    gamma_B111 = dice.factor(config.gamma, 1, 1, 1)
    bent_B3SS = mixed_B3SS.clamp_min(1e-3) ** gamma_B111 if config.gamma else mixed_B3SS
    return _flattened(_lit(bent_B3SS, config, dice), config, dice)


def _matrix(config: AugmentConfig, dice: Dice) -> Tensor:
    """Turned hues, then less or more saturation, then mixed channels, times the contrast: float [B, 3, 3]."""
    angle_B11 = dice.uniform(-1, 1, 1, 1) * (config.hue * 2 * math.pi)
    axis_33, one_33 = GREY_AXIS[None], torch.eye(3)[None]
    turned_B33 = one_33 + angle_B11.sin() * axis_33 + (1 - angle_B11.cos()) * (axis_33 @ axis_33)
    kept_B11 = dice.uniform(1 - config.color, 1 + config.color, 1, 1)
    kept_B11 = torch.where(dice.chance(config.grey, 1, 1), 0.0, kept_B11)
    grey_133 = torch.tensor(LUMINANCE).expand(1, 3, 3)
    saturated_B33 = kept_B11 * one_33 + (1 - kept_B11) * grey_133
    mixing_B33 = one_33 + dice.normal(3, 3) * config.mix
    return _product(_product(mixing_B33, saturated_B33), turned_B33) * dice.factor(config.color, 1, 1)


def _product(left_B33: Tensor, right_B33: Tensor) -> Tensor:
    """Matrix products written out: a batched product may round a row differently in another batch."""
    return (left_B33[:, :, :, None] * right_B33[:, None]).sum(2)


def _mixed(matrix_B33: Tensor, pixels_B3SS: Tensor) -> Tensor:
    red_BSS, green_BSS, blue_BSS = pixels_B3SS.unbind(1)
    rows = (row_B3[:, :, None, None].unbind(1) for row_B3 in matrix_B33.unbind(1))
    return torch.stack([r * red_BSS + g * green_BSS + b * blue_BSS for r, g, b in rows], 1)


def _lit(pixels_B3SS: Tensor, config: AugmentConfig, dice: Dice) -> Tensor:
    """Brighter towards one side, darker towards the other."""
    slope_B2 = dice.normal(2) * config.light
    across_B111, down_B111 = slope_B2[:, :, None, None, None].unbind(1)
    if not config.light:
        return pixels_B3SS
    x_1SS, y_1SS = raster(*pixels_B3SS.shape[-2:])
    return (pixels_B3SS * (1 + across_B111 * x_1SS[None] + down_B111 * y_1SS[None])).clamp(0, 1)


def _flattened(pixels_B3SS: Tensor, config: AugmentConfig, dice: Dice) -> Tensor:
    few_B, solar_B, inverted_B = (dice.chance(p) for p in (config.posterize, config.solarize, config.invert))
    levels_B = dice.uniform(2, 5).floor()
    changed_B3SS = pixels_B3SS.clone()
    levels_F111 = levels_B[few_B][:, None, None, None]
    changed_B3SS[few_B] = (changed_B3SS[few_B] * levels_F111).round() / levels_F111
    bright_F3SS = changed_B3SS[solar_B]
    changed_B3SS[solar_B] = torch.where(bright_F3SS > 0.6, 1 - bright_F3SS, bright_F3SS)
    changed_B3SS[inverted_B] = 1 - changed_B3SS[inverted_B]
    return changed_B3SS
