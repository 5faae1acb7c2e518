"""How training images are changed at random."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from pretrain.settings import Section

WARPS = ("rotate", "zoom", "stretch", "shift", "shear", "perspective", "bend")
COLOURS = ("color", "gamma", "hue", "mix", "light", "grey", "posterize", "solarize", "invert")
SURFACES = ("background", "outline", "sketch", "sharpen", "erase")


Kind = Literal[
    "identity",
    "autocontrast",
    "equalize",
    "brightness",
    "contrast",
    "color",
    "sharpness",
    "posterize",
    "solarize",
    "solarize_add",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
]
MOVES: tuple[Kind, ...] = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
USUAL: tuple[Kind, ...] = ("identity", "autocontrast", "equalize", "brightness", "sharpness", *MOVES)
"""What ALBEF, BLIP and X-VLM draw from."""


class RandAugmentConfig(Section):
    """RandAugment (arXiv:1909.13719) of each image by itself: `operations` of `kinds`, drawn with repetition.

    Each is done with `probability`, at `level` of its range: brightness, contrast, color and sharpness 0.1 to 1.9,
    rotation to 30 degrees and shear to 0.3 (either way), `translate` pixels, 4 bits, solarizing from 256, 110 added
    before solarizing. `fill` is the grey where nothing was. `whole` changes the image as it is stored, before it is
    cut and resized (ViLT, METER), otherwise after it.
    """

    kinds: tuple[Kind, ...] = Field(USUAL, min_length=1)
    operations: int = Field(2, ge=1)
    level: float = Field(0.7, gt=0, le=1)
    probability: float = Field(0.5, gt=0, le=1)
    translate: float = Field(10.0, gt=0)
    fill: int = Field(128, ge=0, le=255)
    whole: bool = False


class AugmentConfig(Section):
    """Random changes of the training image; all off by default.

    On each image as it is stored: `crop_scale` is the smallest area kept by a random resized crop (1 = no crop); `flip`
    is for data without left and right in its texts; `randaugment` is a section of its own, null for none.

    On the whole batch at once. Shape: `rotate` turns by up to this many degrees; `zoom` and `stretch` change size and
    aspect by up to this share, `shift` moves by up to this share of a side, `shear`, `perspective` and `bend` distort.
    Colour: `color` jitters brightness, contrast and saturation by up to this factor, `gamma` the exponent; `hue` turns
    hues by up to this share of the circle; `mix` is the deviation of how much of each channel goes into the others;
    `light` of a linear light over the image. `grey`, `posterize`, `solarize`, `invert` are probabilities. Surface:
    `background` is the probability of another colour behind a subject that stands on plain ground, `outline` of a line
    around it, `sketch` of nothing but its lines; `sharpen` blurs or sharpens half of the images by up to this factor;
    `erase` is the probability of a box of one colour.

    `blend` is the probability of mixing an image with another of its `data.group_by`, half of the time pixel by pixel
    and half by random patches.
    """

    crop_scale: float = Field(1.0, gt=0, le=1)
    flip: bool = False
    randaugment: RandAugmentConfig | None = None
    rotate: float = Field(0.0, ge=0, le=180)
    zoom: float = Field(0.0, ge=0)
    stretch: float = Field(0.0, ge=0)
    shift: float = Field(0.0, ge=0, le=1)
    shear: float = Field(0.0, ge=0, lt=1)
    perspective: float = Field(0.0, ge=0, lt=0.5)
    bend: float = Field(0.0, ge=0, lt=0.5)
    color: float = Field(0.0, ge=0, lt=1)
    gamma: float = Field(0.0, ge=0)
    hue: float = Field(0.0, ge=0, le=0.5)
    mix: float = Field(0.0, ge=0, lt=1)
    light: float = Field(0.0, ge=0, lt=1)
    grey: float = Field(0.0, ge=0, le=1)
    posterize: float = Field(0.0, ge=0, le=1)
    solarize: float = Field(0.0, ge=0, le=1)
    invert: float = Field(0.0, ge=0, le=1)
    background: float = Field(0.0, ge=0, le=1)
    outline: float = Field(0.0, ge=0, le=1)
    sketch: float = Field(0.0, ge=0, le=1)
    sharpen: float = Field(0.0, ge=0, le=2)
    erase: float = Field(0.0, ge=0, le=1)
    blend: float = Field(0.0, ge=0, le=1)

    @property
    def moving(self) -> list[str]:
        """The settings that move pixels."""
        cropped = ["crop_scale"] if self.crop_scale < 1 else []
        if self.randaugment and any(kind in MOVES for kind in self.randaugment.kinds):
            cropped.append("randaugment")
        return cropped + self.chosen(("flip", *WARPS, "blend"))

    @property
    def before_resizing(self) -> bool:
        """Whether the image is changed before it has the model's size."""
        return self.crop_scale < 1 or bool(self.randaugment and self.randaugment.whole)

    @property
    def together(self) -> list[str]:
        """The settings that work on a whole batch."""
        return self.chosen((*WARPS, *COLOURS, *SURFACES, "blend"))

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Which of these settings are on."""
        return [name for name in names if getattr(self, name)]
