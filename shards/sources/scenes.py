"""A generated corpus whose truth is known: coloured, textured, sized objects in spatial relations, with captions.

    (seed, split, i) -> generator -> Scene (scenes_layout) -> pixels (scenes_render), captions (scenes_text) -> Sample

Nothing is stored: sample i is a pure function of (seed, split, i, size). A scene belongs to the split that the hash of
its description falls into, so no description is ever in two splits, whatever the seeds and numbers of samples. Region
features are the pixels of each object's box before JPEG: [K, 192] float16, the crop at 8x8x3 divided by 255.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from shards.errors import UserError
from shards.sample import Identity, Region, Relation, Sample
from shards.sources.scenes_layout import SHARES, Axis, Scene, Thing, Third
from shards.sources.scenes_render import (
    COLOURS,
    SHAPES,
    TEXTURES,
    Box,
    crop_features,
    draw_extents,
    encode,
    lay_out,
    render,
)
from shards.sources.scenes_text import captions

VERSION = 2
"""Raise it when the same (seed, split, i) gives another sample."""

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SIZES = ("small", "large")


class ScenesSource:
    """`samples` scenes of a split.

    Args:
        size: Height and width of the images in pixels.
    """

    name = "scenes"

    def __init__(self, samples: int, seed: int, split: str, size: int = 64) -> None:
        if samples < 1:
            raise UserError(f"`samples` (={samples}) must be at least 1")
        if not 0 <= seed < 2**64:
            raise UserError(f"`seed` (={seed}) must be at least 0 and less than 2**64")
        if split not in SHARES:
            raise UserError(f"`split` (={split}) must be one of {', '.join(SHARES)}")
        if not 48 <= size <= 1024:
            raise UserError(f"`size` (={size}) must be from 48 to 1024")
        self.samples, self.seed, self.split, self.size = samples, seed, split, size

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.samples:
            raise IndexError(f"sample {index} of {self.samples}")
        rng = self._rng(index)
        scene = draw_scene(rng, self.split)
        extents = draw_extents(rng, [thing.size for thing in scene.things], self.size, scene.third == "line")
        boxes = lay_out(rng, scene.axis, scene.third, extents, self.size)
        looks = [(thing.shape, thing.colour, thing.texture) for thing in scene.things]
        pixels_HWC, tight = render(rng, looks, boxes, self.size)
        return Sample(
            key=f"{self.split}-{index:08d}",
            image=encode(pixels_HWC),
            extension="jpg",
            captions=captions(rng, scene),
            regions=tuple(_region(thing, box) for thing, box in zip(scene.things, tight, strict=True)),
            relations=tuple(_relations(tight)),
            tags=tuple(sorted({word for thing in scene.things for word in (thing.shape, thing.colour)})),
            metadata={"description": scene.description(), "split": self.split},
            region_features=crop_features(pixels_HWC, tight),
        )

    def identity(self, index: int) -> Identity:
        return Identity(self.fingerprint()[:16], index)

    def fingerprint(self) -> str:
        parts = ("scenes", VERSION, self.seed, self.split, self.samples, self.size)
        return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()

    def _rng(self, index: int) -> np.random.Generator:
        key = np.array([self.seed, index * len(SHARES) + list(SHARES).index(self.split)], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))


def draw_scene(rng: np.random.Generator, split: str) -> Scene:
    """A random scene of `split`: drawn again until its description falls there, ten times on average for the rarest."""
    while True:
        count = int(rng.integers(2, 4))
        axis: Axis = ("row", "column")[rng.integers(2)]
        scene = Scene(_draw_things(rng, count), axis, "")
        if count == 3:
            scene = Scene(scene.things, axis, _draw_third(rng, scene.things, axis))
        if scene.split() == split:
            return scene


def _draw_things(rng: np.random.Generator, count: int) -> tuple[Thing, ...]:
    """Things that differ in colour or shape, so that "the red star" means one of them."""
    kinds = rng.choice(len(COLOURS) * len(SHAPES), size=count, replace=False)
    sizes, textures = rng.integers(len(SIZES), size=count), rng.integers(len(TEXTURES), size=count)
    colours, shapes = list(COLOURS), list(SHAPES)
    return tuple(
        Thing(SIZES[size], colours[kind // len(shapes)], TEXTURES[texture], shapes[kind % len(shapes)])
        for kind, size, texture in zip(kinds, sizes, textures, strict=True)
    )


def _draw_third(rng: np.random.Generator, things: tuple[Thing, ...], axis: Axis) -> Third:
    """Three in a line fit only when at most one is large."""
    sides: tuple[Third, ...] = ("above", "below") if axis == "row" else ("left", "right")
    lines: tuple[Third, ...] = ("line",) if sum(thing.size == "large" for thing in things) < 2 else ()
    places = (*sides, *lines)
    return places[rng.integers(len(places))]


def _region(thing: Thing, box: Box) -> Region:
    left, top, right, bottom = box
    return Region((left, top, right, bottom), thing.shape, (thing.colour, thing.texture, thing.size))


def _relations(boxes: list[Box]) -> Iterator[Relation]:
    """Every relation that holds between two boxes, in both directions."""
    for i, a in enumerate(boxes):
        for j, b in enumerate(boxes):
            if a[2] <= b[0]:
                yield Relation(i, "left of", j)
                yield Relation(j, INVERSE["left of"], i)
            if a[3] <= b[1]:
                yield Relation(i, "above", j)
                yield Relation(j, INVERSE["above"], i)
