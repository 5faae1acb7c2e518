"""RandAugment: each kind against torchvision's own at the published ranges; the same draws, the same image."""

import math
from collections import Counter
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from pretrain.data import randaugment as module
from pretrain.data.augment_config import MOVES, AugmentConfig, Kind, RandAugmentConfig
from pretrain.data.randaugment import OPERATIONS, randaugment
from pretrain.data.transforms import changed, training_pixels
from shards.sample import Sample
from tests.shards.conftest import png

KINDS = get_args(Kind)
BILINEAR = InterpolationMode.BILINEAR
H, W = 48, 64


def picture(seed: int = 0) -> np.ndarray:
    """Smooth enough that half a pixel matters little, with a range that autocontrast can widen; uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(40, 200, (1, 3, 4, 5)).astype(np.float32))
    fine = torch.nn.functional.interpolate(coarse, (H, W), mode="bicubic")[0].clamp(30, 220)
    return fine.permute(1, 2, 0).round().byte().numpy()


def torchvisions(kind: str, level: float, sign: int) -> np.ndarray:
    """The same operation by torchvision, with the numbers of ALBEF's and ViLT's code."""
    image, factor = torch.from_numpy(picture()).permute(2, 0, 1), 0.1 + 1.8 * level
    grey = [128.0] * 3
    match kind:
        case "identity":
            found = image
        case "autocontrast":
            found = TF.autocontrast(image)
        case "equalize":
            found = TF.equalize(image)
        case "brightness":
            found = TF.adjust_brightness(image, factor)
        case "contrast":
            found = TF.adjust_contrast(image, factor)
        case "color":
            found = TF.adjust_saturation(image, factor)
        case "sharpness":
            found = TF.adjust_sharpness(image, factor)
        case "posterize":
            found = TF.posterize(image, max(1, int(level * 4)))
        case "solarize":
            found = TF.solarize(image, int(level * 256))
        case "solarize_add":
            found = TF.solarize((image.int() + int(level * 110)).clamp(0, 255).byte(), 128)
        case "rotate":
            found = TF.rotate(image, sign * level * 30, BILINEAR, fill=grey)
        case "shear_x" | "shear_y":
            angle = sign * math.degrees(math.atan(level * 0.3))
            shear = [angle, 0.0] if kind == "shear_x" else [0.0, angle]
            found = TF.affine(image, 0.0, [0, 0], 1.0, shear, BILINEAR, grey, center=[0.0, 0.0])
        case "translate_x" | "translate_y":
            moved = -sign * round(level * 10)
            found = TF.affine(
                image, 0.0, [moved, 0] if kind == "translate_x" else [0, moved], 1.0, [0.0, 0.0], BILINEAR, grey
            )
    return found.permute(1, 2, 0).numpy()


def by_us(kind: str, level: float, sign: int) -> np.ndarray:
    return np.asarray(OPERATIONS[kind](Image.fromarray(picture()), sign, RandAugmentConfig(level=level)))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", [0.3, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_torchvisions(kind: str, level: float, sign: int) -> None:
    """Equal to a rounding, but at the rim of what was moved, where each library mixes in the ground its own way."""
    off = np.abs(by_us(kind, level, sign).astype(int) - torchvisions(kind, level, sign)).max(2)
    if kind in MOVES:
        assert np.mean(off > 2) < 0.06
        assert np.median(off) <= 1
    else:
        assert off.max() <= 1


def test_kinds_are_drawn_evenly_and_done_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    done: Counter[str] = Counter()

    def counted(kind):
        return lambda image, sign, config: (done.update([kind, f"{kind}{sign:+.0f}"]), image)[1]

    monkeypatch.setattr(module, "OPERATIONS", {kind: counted(kind) for kind in KINDS})
    rng, config = np.random.default_rng(0), RandAugmentConfig(kinds=("rotate", "equalize"), operations=3)
    for _ in range(1000):
        randaugment(picture(), config, rng)
    expected = 1000 * 3 / 2 * 0.5
    assert done["rotate"] == pytest.approx(expected, abs=80)
    assert done["equalize"] == pytest.approx(expected, abs=80)
    assert done["rotate+1"] == pytest.approx(expected / 2, abs=80)
    assert done["rotate+1"] + done["rotate-1"] == done["rotate"]


def test_same_draws_same_image() -> None:
    config, pixels = RandAugmentConfig(kinds=KINDS, probability=1.0), picture()
    first, again = (randaugment(pixels, config, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == (H, W, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(pixels, picture()), "what is given stays as it was"
    others = [randaugment(pixels, config, np.random.default_rng(seed)) for seed in range(6, 16)]
    assert sum(np.array_equal(first, other) for other in others) <= 1


def sample() -> Sample:
    return Sample(key="a", image=png(1, 200, 100), extension="png", captions=("a",))


def test_before_and_after_resizing() -> None:
    """`whole` moves by pixels of the stored image, otherwise by those of the model's size."""
    only = {"kinds": ("translate_x",), "operations": 1, "level": 1.0, "probability": 1.0, "translate": 50.0, "fill": 0}
    for whole, size, black in ((True, 32, 8), (False, 64, 50)):
        config = AugmentConfig(randaugment=RandAugmentConfig(**only, whole=whole))
        assert config.before_resizing == whole
        pixels = training_pixels(sample(), size, config, np.random.default_rng(0))
        dark = (pixels == 0).all(2).all(0).sum()
        assert dark == pytest.approx(black, abs=1)


def test_after_the_flip() -> None:
    """An image of the model's size is mirrored first, so that both act on what the model sees."""
    config = AugmentConfig(flip=True, randaugment=RandAugmentConfig(kinds=("identity",)))
    pixels = torch.from_numpy(picture())
    seen = {changed(pixels, config, np.random.default_rng(seed)).numpy().tobytes() for seed in range(20)}
    assert seen == {picture().tobytes(), np.ascontiguousarray(picture()[:, ::-1]).tobytes()}


def test_what_moves_pixels_is_named() -> None:
    still = AugmentConfig(randaugment=RandAugmentConfig(kinds=("equalize",)))
    assert still.moving == []
    assert AugmentConfig(randaugment=RandAugmentConfig()).moving == ["randaugment"]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="equalise"):
        AugmentConfig.model_validate({"randaugment": {"kinds": ["equalise"]}})
