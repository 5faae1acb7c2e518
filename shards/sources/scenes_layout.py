"""What a generated scene is: things, and how they stand to each other. Its pixels and its texts are made from this."""

import zlib
from dataclasses import dataclass
from typing import Literal

SHARES = {"train": range(8), "val": range(8, 9), "test": range(9, 10)}
"""Of ten description hashes, which belong to a split."""

Axis = Literal["row", "column"]
Third = Literal["", "line", "above", "below", "left", "right"]


@dataclass(frozen=True, slots=True)
class Thing:
    """One object as captions see it."""

    size: str
    colour: str
    texture: str
    shape: str


@dataclass(frozen=True, slots=True)
class Scene:
    """Two or three things in order of reading.

    The first two stand side by side (`row`) or one above the other (`column`). `third` is where the third stands:
    further on in the `line`, or at that side of the other two; empty where there are two.
    """

    things: tuple[Thing, ...]
    axis: Axis
    third: Third

    def description(self) -> str:
        """Canonical: equal scenes have equal descriptions, and no two scenes share one."""
        things = ("-".join((t.size, t.colour, t.texture, t.shape)) for t in self.things)
        return " ".join((self.axis, self.third or "pair", *things))

    def split(self) -> str:
        bucket = zlib.crc32(self.description().encode()) % 10
        return next(name for name, buckets in SHARES.items() if bucket in buckets)
