"""A page to look at a shard set: samples with captions and boxes, and its numbers. One file that needs no other."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.decode import decode_image, image_size
from shards.errors import DamagedSample
from shards.reader import ShardSet
from shards.sample import Region, Sample
from shards.stats import Histogram, read_samples, spread, stats
from shards.storage import write_atomically

THUMBNAIL = 360
"""Pixels of the longer side; images are not enlarged."""
BOXES = 12
"""Boxes drawn, the surest first: more hide the picture."""


@dataclass(frozen=True, slots=True)
class Box:
    """A region in per cent of the image's width and height."""

    left: float
    top: float
    width: float
    height: float
    text: str
    colour: int


@dataclass(frozen=True, slots=True)
class Card:
    """One sample on the page; `picture` is empty and `damage` says why where it cannot be shown."""

    place: str
    key: str
    picture: str
    size: str
    captions: tuple[str, ...]
    boxes: tuple[Box, ...]
    regions: int
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    damage: str = ""


def write_page(folder: Path, out: Path, samples: int = 60, look: int = 1000) -> int:
    """Writes the page. Returns the number of samples shown, which are spread evenly over the set."""
    from jinja2 import Environment, PackageLoader

    shards = ShardSet(folder)
    indices = spread(len(shards), samples)
    cards = [_card(shards, index, found) for index, found in zip(indices, read_samples(shards, indices), strict=True)]
    found = stats(folder, look)
    environment = Environment(loader=PackageLoader("shards"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["bars"] = _bars
    page = environment.get_template("inspect.html").render(
        stats=found, cards=cards, plan=shards.manifest.plan, filtered=shards.manifest.filtered
    )
    write_atomically(out, page.encode())
    return len(cards)


def _card(shards: ShardSet, index: int, found: Sample | DamagedSample) -> Card:
    shard, ordinal = shards.place(index)
    place = f"{shard}, sample {ordinal}"
    if isinstance(found, DamagedSample):
        return Card(place, "", "", "", (), (), 0, (), {}, str(found))
    captions, tags, metadata = found.captions, found.tags, dict(found.metadata)
    try:
        pixels_HWC = decode_image(found.image, found.extension)
        stored = image_size(found.image)
    except DamagedSample as error:
        return Card(place, found.key, "", "", captions, (), len(found.regions), tags, metadata, str(error))
    height, width = pixels_HWC.shape[:2]
    # Boxes are in pixels of the stored image: where EXIF turned it, they would be drawn in the wrong place.
    boxes = _boxes(found.regions, width, height) if stored == (width, height) else ()
    picture = _thumbnail(pixels_HWC)
    return Card(place, found.key, picture, f"{width}x{height}", captions, boxes, len(found.regions), tags, metadata)


def _thumbnail(pixels_HWC: np.ndarray) -> str:
    """A JPEG as a data address."""
    picture = Image.fromarray(pixels_HWC)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _boxes(regions: tuple[Region, ...], width: int, height: int) -> tuple[Box, ...]:
    surest = sorted(regions, key=lambda region: -region.score)[:BOXES]
    found = []
    for i, region in enumerate(surest):
        left, top, right, bottom = region.box
        text = " ".join((*region.attributes, region.label))
        share = (left / width, top / height, (right - left) / width, (bottom - top) / height)
        place = tuple(round(100 * value, 2) for value in share)
        found.append(Box(place[0], place[1], place[2], place[3], text, i % 6))
    return tuple(found)


def _bars(bins: Histogram) -> list[tuple[str, int, float]]:
    """Label, count and length in per cent of the longest, without the empty ends."""
    rows = bins.bins()
    filled = [i for i, (_, count) in enumerate(rows) if count]
    most = max((count for _, count in rows), default=0) or 1
    shown = rows[filled[0] : filled[-1] + 1] if filled else []
    return [(label, count, round(100 * count / most, 1)) for label, count in shown]
