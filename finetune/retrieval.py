"""What is retrieved: the images of a corpus, their captions, and which belong together.

Shapes: I images, T texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.recall import Indices, Positives
from shards.console import progress
from shards.errors import UserError
from shards.reader import ShardSet
from shards.sources.base import Source
from shards.sources.karpathy import KarpathySource

CaptionPolicy = Literal["all", "first5"]


@dataclass(frozen=True)
class Input:
    """A corpus as a command names it, and a short name for people: `emoji/dataset test`, `scenes/test`."""

    source: Source
    name: str


@dataclass(frozen=True)
class RetrievalSet:
    """Images and texts in the order of the source; the number of texts differs between images.

    Attributes:
        keys: The images' keys, I of them.
        texts: T captions, those of image 0 first.
        image_T: int64 [T], the image of each text.
        metadata: What the source says of each image, I of them; `cocoid` and `sentids` name images and texts of COCO.
    """

    source: Source
    captions: CaptionPolicy
    keys: list[str]
    texts: list[str]
    image_T: Indices
    metadata: list[Mapping[str, Any]]

    @classmethod
    def from_source(cls, source: Source, captions: CaptionPolicy = "all") -> "RetrievalSet":
        """Reads every caption.

        Args:
            captions: `all`, or `first5` for at most the first five of each image.

        Raises:
            UserError: no images.
            DamagedSample: an image cannot be read; leaving it out would make the task easier.
        """
        if not len(source):
            raise UserError(f"the source `{source.name}` holds no images, so there is nothing to retrieve")
        keys: list[str] = []
        texts: list[str] = []
        images: list[int] = []
        metadata: list[Mapping[str, Any]] = []
        with progress("read captions", len(source)) as bar:
            for index in range(len(source)):
                sample = source[index]
                own = sample.captions[:5] if captions == "first5" else sample.captions
                keys.append(sample.key)
                texts.extend(own)
                images.extend([index] * len(own))
                metadata.append(sample.metadata)
                bar.advance()
        return cls(source, captions, keys, texts, np.array(images, np.int64), metadata)

    def texts_of(self, image: int) -> slice:
        """Where an image's texts lie."""
        start, stop = np.searchsorted(self.image_T, [image, image + 1])
        return slice(int(start), int(stop))

    def folds(self, count: int) -> list["Fold"]:
        """Equal folds of the images in the order of the source, each with its own texts.

        Raises:
            UserError: the images do not divide.
        """
        images = len(self.keys)
        if images % count:
            raise UserError(f"`folds` (={count}) must divide the number of images (={images})")
        size = images // count
        return [Fold.of(self, slice(start, start + size)) for start in range(0, images, size)]


@dataclass(frozen=True)
class Fold:
    """A run of images with all their texts, and who belongs to whom inside it."""

    images: slice
    texts: slice
    i2t: Positives
    t2i: Positives

    @classmethod
    def of(cls, data: RetrievalSet, images: slice) -> "Fold":
        texts = slice(data.texts_of(images.start).start, data.texts_of(images.stop - 1).stop)
        image_T = data.image_T[texts] - images.start
        order = np.split(np.arange(len(image_T)), np.flatnonzero(np.diff(image_T)) + 1)
        return cls(images, texts, Positives(order), Positives([[image] for image in image_T]))


def open_input(annotations: Path | None, images: Path | None, split: str, shards: Path | None) -> Input:
    """Opens either form of input of the commands.

    Raises:
        UserError: both or neither are given, or what is given cannot be opened.
    """
    if (annotations is None) == (shards is None):
        given = "both were" if shards else "neither was"
        raise UserError(f"give either `--annotations` with `--images` or `--shards`; {given} given")
    if shards is not None:
        return Input(ShardSet(shards), "/".join(shards.resolve().parts[-2:]))
    if annotations is None or images is None:
        raise UserError("`--annotations` needs `--images`, the folder that its file names start from")
    name = f"{annotations.resolve().parent.name}/{annotations.stem} {split}"
    return Input(KarpathySource(annotations, images, split), name)
