"""Which architectures of which code can be read, and which can be written."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from pretrain.models.config import ModelConfig
from pretrain.models.convert import (
    albef,
    align,
    blip,
    blip_authors,
    clip,
    lxmert,
    meter,
    oscar,
    uniter,
    vilt,
    vilt_authors,
    visual_bert,
)
from pretrain.models.convert.pixels import CLIP_MEAN, CLIP_STD, Pixels
from pretrain.models.convert.rules import Table

Settings = Callable[[Mapping[str, Any], Mapping[str, Tensor]], dict[str, Any]]


class Architecture(NamedTuple):
    """How one published model becomes one of ours.

    Attributes:
        table: By our model's configuration: some tables depend on the number of layers.
        settings: The published configuration and the tensors -> the values of a `PretrainConfig`.
        pixels: What the published code normalises with where no file says so.
    """

    table: Callable[[ModelConfig], Table]
    settings: Settings
    pixels: Pixels | None = None


class Authors(NamedTuple):
    """The same for files of the authors' own code, which say nothing of the model: a configuration of ours does."""

    table: Callable[[ModelConfig], Table]
    pixels: Pixels | None = None


_CLIP_PIXELS = Pixels(CLIP_MEAN, CLIP_STD)

TRANSFORMERS: dict[str, Architecture] = {
    "align": Architecture(align.align_table, align.align_settings),
    "clip": Architecture(lambda _: clip.CLIP, clip.clip_settings, _CLIP_PIXELS),
    "blip": Architecture(lambda _: blip.BLIP, blip.blip_settings, _CLIP_PIXELS),
    "vilt": Architecture(lambda _: vilt.VILT, vilt.vilt_settings),
    "visual_bert": Architecture(lambda _: visual_bert.VISUAL_BERT, visual_bert.visual_bert_settings),
    "lxmert": Architecture(lxmert.lxmert_table, lxmert.lxmert_settings),
}
"""By `model_type` of config.json."""

OPEN_CLIP = Architecture(lambda _: clip.OPEN_CLIP, clip.open_clip_settings, _CLIP_PIXELS)

AUTHORS: dict[str, Authors] = {
    "albef": Authors(albef.albef_table, _CLIP_PIXELS),
    "uniter": Authors(uniter.uniter_table),
    "oscar": Authors(oscar.oscar_table),
    "vinvl": Authors(oscar.oscar_table),
    "meter": Authors(meter.meter_table, _CLIP_PIXELS),
    "blip": Authors(blip_authors.blip_authors_table, _CLIP_PIXELS),
    "vilt": Authors(vilt_authors.vilt_authors_table, Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
}
"""By `--format`."""
