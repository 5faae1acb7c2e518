"""Augmentation of a whole batch: each image's changes are its own, and each operation does what it says."""

import itertools

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF

from pretrain.data.augment import augment, changes
from pretrain.data.augment_config import COLOURS, SURFACES, WARPS, AugmentConfig
from pretrain.data.colours import recolour
from pretrain.data.dice import DRAWS, Dice, throw
from pretrain.data.warp import warp

SIZE = 24
STRONG = dict.fromkeys((*WARPS, *COLOURS, *SURFACES, "blend"), 0.3) | {"rotate": 30.0}


def draws(count: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([throw(np.random.default_rng(seed)) for seed in range(count)]))


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """A coloured box with a spot in it, somewhere on white: uint8 [B, S, S, 3]."""
    rng = np.random.default_rng(seed)
    pixels_BHWC = np.full((count, SIZE, SIZE, 3), 255, np.uint8)
    for picture_HWC in pixels_BHWC:
        top, left = rng.integers(2, 8, 2)
        picture_HWC[top : top + 12, left : left + 12] = rng.integers(0, 200, 3)
        picture_HWC[top + 3 : top + 6, left + 3 : left + 6] = rng.integers(0, 200, 3)
    return torch.from_numpy(pixels_BHWC)


def always(value: float, count: int = 1) -> Dice:
    return Dice(torch.full((count, DRAWS), value))


@pytest.mark.parametrize("name", [*WARPS, *COLOURS, *SURFACES, "blend"])
def test_each_setting_changes_pixels_by_its_draws_alone(name):
    config = AugmentConfig(**{name: STRONG[name]})
    assert changes(config)
    pixels, partners, uniform = pictures(40), pictures(40, seed=1), draws(40)
    changed = augment(pixels, partners, uniform, config)
    assert changed.dtype == torch.uint8
    assert changed.shape == pixels.shape
    assert not torch.equal(changed, pixels)
    assert torch.equal(changed, augment(pixels, partners, uniform, config))


def test_without_a_setting_nothing_changes():
    assert not changes(AugmentConfig())
    assert torch.equal(augment(pictures(5), None, draws(5), AugmentConfig()), pictures(5))


def test_a_row_comes_out_the_same_in_any_batch():
    config, pixels, partners, uniform = AugmentConfig(**STRONG), pictures(40), pictures(40, seed=1), draws(40)
    together = augment(pixels, partners, uniform, config)
    bounds = [0, 1, 18, 40]
    parts = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    apart = torch.cat([augment(pixels[rows], partners[rows], uniform[rows], config) for rows in parts])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_turning_is_torchvisions(share):
    """Every draw is `share`, so the angle is known. The two place samples differently by rounding alone."""
    image = pictures(1).permute(0, 3, 1, 2).float() / 255
    degrees = 40 * (2 * share - 1)
    turned = warp(image, AugmentConfig(rotate=40), always(share))
    expected = TF.rotate(image, degrees, TF.InterpolationMode.BILINEAR, fill=[1.0, 1.0, 1.0])
    inner = slice(4, -4)  # what torchvision blends with the outside at the border differs
    assert (turned - expected)[..., inner, inner].abs().max() < 0.02


def test_zooming_by_two_doubles_the_middle():
    image = torch.zeros(1, 3, 16, 16)
    image[..., 6:10, 6:10] = 1
    zoomed = warp(image, AugmentConfig(zoom=1), always(1.0))  # factor 2 at the end of its range
    assert (zoomed[..., 5:11, 5:11] > 0.9).all()
    assert (zoomed[..., :3, :] == 0).all()


def test_what_comes_from_outside_has_the_colour_of_the_corner():
    image = torch.full((1, 3, 16, 16), 0.4)
    image[..., 4:12, 4:12] = 0.9
    moved = warp(image, AugmentConfig(shift=0.5), always(0.999))
    assert moved[..., -1, -1].allclose(torch.tensor(0.4))
    assert moved.min() > 0.399


def test_turned_hues_leave_grey_alone_and_a_third_of_the_circle_swaps_channels():
    grey = torch.full((1, 3, 4, 4), 0.37)
    assert recolour(grey, AugmentConfig(hue=0.5), always(0.8)).allclose(grey, atol=1e-6)
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 0.5
    turned = recolour(red, AugmentConfig(hue=1 / 3), always(1.0))
    assert sorted(turned[0, :, 0, 0].tolist()) == pytest.approx([0, 0, 0.5], abs=1e-6)
    assert turned[0, 0, 0, 0] == pytest.approx(0, abs=1e-6)


def test_grey_images_have_equal_channels_of_their_luminance():
    image = pictures(1).permute(0, 3, 1, 2).float() / 255
    grey = recolour(image, AugmentConfig(grey=1.0), always(0.5))
    luminance = 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]
    for channel in grey.unbind(1):
        assert channel.allclose(luminance, atol=1e-5)


def test_inverting_twice_is_nothing_and_posterizing_leaves_few_values():
    image = pictures(1).permute(0, 3, 1, 2).float() / 255
    inverted = recolour(image, AugmentConfig(invert=1.0), always(0.5))
    assert inverted.allclose(1 - image, atol=1e-6)
    assert len(recolour(torch.rand(1, 3, 8, 8), AugmentConfig(posterize=1.0), always(0.5)).unique()) <= 5


def test_a_blend_lies_between_both_or_is_one_of_them_in_each_pixel():
    config, black = AugmentConfig(blend=1.0), torch.zeros(200, SIZE, SIZE, 3, dtype=torch.uint8)
    blended = augment(black, black + 200, draws(200), config)
    kinds = [len(image.unique()) for image in blended]
    even, patched = kinds.count(1), kinds.count(2)
    assert even + patched == 200
    assert 70 < patched < 130  # half of 200, four deviations
    assert all(set(image.unique().tolist()) == {0, 200} for image in blended if len(image.unique()) == 2)


def test_a_blend_is_as_likely_as_configured():
    black = torch.zeros(400, SIZE, SIZE, 3, dtype=torch.uint8)
    blended = augment(black, black + 200, draws(400), AugmentConfig(blend=0.25))
    assert 60 < sum(bool(image.any()) for image in blended) < 140


def test_a_new_ground_leaves_the_subject():
    pixels = pictures(30)
    grounded = augment(pixels, None, draws(30), AugmentConfig(background=1.0))
    subject = (pixels.int() - 255).abs().amax(-1) > 40  # darker than the soft edge of the subject
    assert torch.equal(grounded[subject], pixels[subject])
    assert (grounded[:, 0, 0] != 255).any()


def test_an_erased_box_has_one_colour():
    white = torch.full((60, SIZE, SIZE, 3), 255, dtype=torch.uint8)
    erased = augment(white, None, draws(60), AugmentConfig(erase=1.0))
    colours = [len(image.flatten(0, 1).unique(dim=0)) for image in erased]
    assert set(colours) <= {1, 2}
    assert colours.count(2) > 50
    assert (erased != 255).any(-1).float().mean() < 0.17  # two fifths of each side at the most


def test_a_sketch_of_one_colour_is_white():
    plain = torch.full((4, SIZE, SIZE, 3), 90, dtype=torch.uint8)
    assert (augment(plain, None, draws(4), AugmentConfig(sketch=1.0)) >= 254).all()


def test_draws_are_uniform_and_normal_and_never_too_many():
    dice = Dice(draws(500))
    assert dice.uniform(0, 1, 20).min() >= 0
    assert dice.normal(50).std() == pytest.approx(1, abs=0.02)
    with pytest.raises(AssertionError, match="too few"):
        dice.uniform(0, 1, DRAWS)
