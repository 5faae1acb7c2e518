"""Four plain colours with their names as captions: a corpus on which each loss has a known floor."""

import io

import numpy as np
from PIL import Image

from shards.sample import Identity, Sample

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}


class Colours:
    """A `Source`; `metadata` has the name as `colour`."""

    name = "colours"

    def __len__(self):
        return len(COLOURS)

    def __getitem__(self, index):
        name, rgb = list(COLOURS.items())[index]
        target = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), rgb, dtype=np.uint8)).save(target, "png")
        return Sample(name, target.getvalue(), "png", (name,), metadata={"colour": name})

    def identity(self, index):
        return Identity(self.name, index)

    def fingerprint(self):
        return "c0" * 32
