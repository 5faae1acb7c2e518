"""Random changes of a whole batch of training images at once, many times faster than image by image.

    blend (with another image of the group) -> warp -> recolour -> outline, background -> sharpen, sketch -> erase

What happens to an image is decided by its row of draws alone. Strong distortion as in RandAugment (arXiv:1909.13719),
random erasing (arXiv:1708.04896), mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899), these two inside of a group,
where the label is not mixed.

Shapes: B images, S x S pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.augment_config import COLOURS, WARPS, AugmentConfig
from pretrain.data.colours import recolour
from pretrain.data.dice import Dice
from pretrain.data.warp import raster, warp

PATCHES = 3
"""Knots along each side of the random map that says which of two images shows."""
SHARPNESS = 8.0
"""How fast a pixel that differs from the ground counts as subject."""


def changes(config: AugmentConfig) -> bool:
    """Whether `augment` does anything."""
    return bool(config.together)


def augment(pixels_BHWC: Tensor, partner_BHWC: Tensor | None, uniform_BK: Tensor, config: AugmentConfig) -> Tensor:
    """Changed images.

    Args:
        pixels_BHWC: uint8 [B, S, S, 3].
        partner_BHWC: uint8 [B, S, S, 3], another image of each one's group, for `blend`; None for none.
        uniform_BK: float [B, K], from `pretrain.data.dice.throw`.

    Returns:
        uint8 [B, S, S, 3].
    """
    dice, image_B3SS = Dice(uniform_BK), _planes(pixels_BHWC)
    if partner_BHWC is not None:
        image_B3SS = _blend(image_B3SS, _planes(partner_BHWC), config, dice)
    if config.chosen(WARPS):
        image_B3SS = warp(image_B3SS, config, dice)
    subject_B1SS = _subject(image_B3SS) if config.background or config.outline else None
    if config.chosen(COLOURS):
        image_B3SS = recolour(image_B3SS, config, dice)
    if subject_B1SS is not None:
        image_B3SS = _ground(image_B3SS, subject_B1SS, config, dice)
    if config.sharpen:
        image_B3SS = _sharpen(image_B3SS, config, dice)
    if config.sketch:
        image_B3SS = _sketch(image_B3SS, dice.chance(config.sketch))
    if config.erase:
        image_B3SS = _erase(image_B3SS, config, dice)
    return (image_B3SS * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _planes(pixels_BHWC: Tensor) -> Tensor:
    return pixels_BHWC.permute(0, 3, 1, 2).contiguous().float() / 255


def _blend(image_B3SS: Tensor, partner_B3SS: Tensor, config: AugmentConfig, dice: Dice) -> Tensor:
    """Mixes with the partner: pixel by pixel by one share, or the one inside of random blots and the other outside."""
    drawn_B111, share_B111 = dice.uniform(0, 1, 1, 1, 1), dice.uniform(0, 1, 1, 1, 1)
    knots_B1KK = dice.normal(1, PATCHES, PATCHES)
    blots_B1SS = F.interpolate(knots_B1KK, size=image_B3SS.shape[-2:], mode="bilinear") > 0
    own_B1SS = torch.where(drawn_B111 < config.blend / 2, share_B111, blots_B1SS.float())
    own_B1SS = torch.where(drawn_B111 < config.blend, own_B1SS, 1.0)
    return own_B1SS * image_B3SS + (1 - own_B1SS) * partner_B3SS


def _subject(image_B3SS: Tensor) -> Tensor:
    """How much each pixel is not the ground, whose colour is that of the first corner: float [B, 1, S, S] in [0, 1]."""
    away_B1SS = (image_B3SS - image_B3SS[:, :, :1, :1]).abs().amax(1, keepdim=True)
    return (away_B1SS * SHARPNESS).clamp(0, 1)


def _ground(image_B3SS: Tensor, subject_B1SS: Tensor, config: AugmentConfig, dice: Dice) -> Tensor:
    """Draws a dark line around the subject, and lays both on ground of one random colour or on white."""
    outlined_B, replaced_B = dice.chance(config.outline, 1, 1, 1), dice.chance(config.background, 1, 1, 1)
    line_B311, ground_B311 = dice.uniform(0, 0.5, 3, 1, 1), dice.uniform(0, 1, 3, 1, 1)
    ground_B311 = torch.where(replaced_B, ground_B311, 1.0)
    wider_B1SS = torch.where(outlined_B, _grown(subject_B1SS), subject_B1SS)
    drawn_B3SS = subject_B1SS * image_B3SS + (wider_B1SS - subject_B1SS) * line_B311
    return drawn_B3SS + (1 - wider_B1SS) * ground_B311


def _sharpen(image_B3SS: Tensor, config: AugmentConfig, dice: Dice) -> Tensor:
    """Moves half of the images towards a blurred copy or away from it."""
    weight_B111 = dice.uniform(-1, 1, 1, 1, 1) * config.sharpen * dice.chance(0.5, 1, 1, 1)
    return (image_B3SS + weight_B111 * (_blurred(image_B3SS) - image_B3SS)).clamp(0, 1)


def _blurred(image_B3SS: Tensor) -> Tensor:
    """By the binomial kernel of five pixels, one side after the other. Shifted sums: torch pools many times slower."""
    wide_B3SS = F.pad(image_B3SS, (2, 2, 2, 2), mode="replicate")
    for side in (2, 3):
        size = wide_B3SS.shape[side] - 4
        first, second, third, fourth, fifth = (wide_B3SS.narrow(side, start, size) for start in range(5))
        wide_B3SS = (first + fifth + 4 * (second + fourth) + 6 * third) / 16
    return wide_B3SS


def _grown(mask_B1SS: Tensor) -> Tensor:
    """Each pixel takes the largest value of itself and its eight neighbours."""
    wide_B1SS = F.pad(mask_B1SS, (1, 1, 1, 1), mode="replicate")
    for side in (2, 3):
        size = wide_B1SS.shape[side] - 2
        before, here, behind = (wide_B1SS.narrow(side, start, size) for start in range(3))
        wide_B1SS = torch.maximum(torch.maximum(before, here), behind)
    return wide_B1SS


def _sketch(image_B3SS: Tensor, chosen_B: Tensor) -> Tensor:
    """Leaves dark lines on white where brightness changes."""
    grey_F1SS = image_B3SS[chosen_B].mean(1, keepdim=True)
    across_F1SS = F.pad(grey_F1SS.diff(dim=3), (0, 1, 0, 0))
    down_F1SS = F.pad(grey_F1SS.diff(dim=2), (0, 0, 0, 1))
    lines_F1SS = (1 - 3 * (across_F1SS**2 + down_F1SS**2).sqrt()).clamp(0, 1)
    sketched_B3SS = image_B3SS.clone()
    sketched_B3SS[chosen_B] = lines_F1SS.expand(-1, 3, -1, -1)
    return sketched_B3SS


def _erase(image_B3SS: Tensor, config: AugmentConfig, dice: Dice) -> Tensor:
    """Covers a box of a tenth to two fifths of each side."""
    x_1SS, y_1SS = raster(*image_B3SS.shape[-2:])
    chosen_B11 = dice.chance(config.erase, 1, 1)
    across_B11, down_B11 = dice.uniform(-1, 1, 1, 1), dice.uniform(-1, 1, 1, 1)
    width_B11, height_B11 = dice.uniform(0.2, 0.8, 1, 1), dice.uniform(0.2, 0.8, 1, 1)
    inside_BSS = ((x_1SS - across_B11).abs() < width_B11 / 2) & ((y_1SS - down_B11).abs() < height_B11 / 2)
    return torch.where((inside_BSS & chosen_B11)[:, None], dice.uniform(0, 1, 3, 1, 1), image_B3SS)
