"""Corpora of image files below one folder: finding the files, keys, identity and fingerprint.

    annotation file -> [Record(file, captions, metadata)] -> ImageFileSource -> Sample

A file of annotations decides the records; this decides what becomes of them, so that equal records give equal samples
whatever form they came in.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shards.errors import DamagedSample, SourceGone, UserError
from shards.sample import Identity, Region, Relation, Sample, plain
from shards.soundness import CAPTION_BYTES
from shards.sources.annotation_files import ESCAPED

GONE = 8
"""So many files in a row that cannot be read, though all were there at the start, are no damage of theirs."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image: its path below the image folder, its captions, and what else the annotations say."""

    file: str
    captions: tuple[str, ...]
    metadata: dict[str, Any]
    regions: tuple[Region, ...] = ()
    relations: tuple[Relation, ...] = ()


class ImageFileSource:
    """Records over image files. Images are read when asked for; that all of them exist is checked at once.

    Args:
        images: The folder that the records' files start from; None where only the names are of use: samples then have
            no image, and other sources give them their regions.
        within: Where a file may be named once only, for the message.

    Raises:
        UserError: a missing folder, missing image files, a file named twice.
        SourceGone: from `[index]`, where the last file that was read cannot be read either, or `GONE` in a row cannot.
        DamagedSample: from `[index]`, where one file alone cannot be read.
    """

    name: str
    _last: str | None

    def __init__(self, images: Path | None, records: list[Record], within: str = "the annotations") -> None:
        self.images = images and image_folder(images)
        self._records = records
        files = [record.file for record in records]
        self._keys = _unique_keys(files, within)
        self._fingerprint = _fingerprint(
            records, _existing_sizes(self.images, files) if self.images else [0] * len(files)
        )
        self._failed, self._last = 0, None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        return Sample(
            key=self._keys[index],
            image=self._image(self.images, record.file) if self.images else b"",
            extension=PurePosixPath(record.file).suffix[1:].lower() if self.images else "",
            captions=record.captions,
            regions=record.regions,
            relations=record.relations,
            metadata={**record.metadata, "file": printable(record.file)},
        )

    def _image(self, images: Path, file: str) -> bytes:
        try:
            image = (images / file).read_bytes()
        except OSError as error:
            self._failed += 1
            if self._failed >= GONE or not self._last_is_there(images):
                raise SourceGone(f"`images` (={images}) can no longer be read: {file}: {error.strerror}") from error
            raise DamagedSample(f"{file}: {error.strerror}") from error
        self._failed, self._last = 0, file
        return image

    def _last_is_there(self, images: Path) -> bool:
        """Whether what could be read before still can; before the first, whether the folder holds anything."""
        if self._last is None:
            return images.is_dir() and bool(os.listdir(images))
        try:
            (images / self._last).read_bytes()
        except OSError:
            return False
        return True

    @property
    def files(self) -> list[str]:
        """The path of each image below the folder."""
        return [record.file for record in self._records]

    def identity(self, index: int) -> Identity:
        return Identity(self._fingerprint[:16], index)

    def fingerprint(self) -> str:
        """Over the records and the sizes of the image files: their bytes are not all read."""
        return self._fingerprint


def image_folder(images: Path) -> Path:
    """Raises UserError where `images` is no folder."""
    if not Path(images).is_dir():
        raise UserError(f"`images` (={images}) must be a folder")
    return Path(images)


def file_below(images: Path | None, name: str) -> str:
    """The path of an image below `images`; annotations name it so, or by an absolute path that leads there.

    Raises:
        UserError: a path that leads elsewhere.
    """
    path = PurePosixPath(name)
    if images and path.is_absolute() and path.is_relative_to(os.path.abspath(images)):
        path = path.relative_to(os.path.abspath(images))
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise UserError(f"image `{name}` must be a path below `images` (={images})")
    return str(path)


def printable(text: str) -> str:
    r"""The text with bytes that are not UTF-8 written as \xNN."""
    return text if text.isascii() else text.encode("utf-8", ESCAPED).decode("utf-8", "backslashreplace")


def captions_of(file: str, captions: Iterable[str]) -> tuple[str, ...]:
    """Captions stripped, those without text dropped. Raises UserError where none is left.

    Of one that is too long as much is held as shows it.
    """
    kept = tuple(caption.strip()[: CAPTION_BYTES + 1] for caption in captions if caption.strip())
    if not kept:
        raise UserError(f"image `{file}` must have at least one caption")
    return kept


def grouped(images: Path, pairs: Iterable[tuple[str, str]]) -> list[Record]:
    """(image name, caption) pairs as one record per image, in the order of first appearance."""
    found: dict[str, list[str]] = {}
    for name, caption in pairs:
        found.setdefault(file_below(images, name), []).append(caption)
    return [Record(file, captions_of(file, captions), {}) for file, captions in found.items()]


def file_sizes(images: Path, files: list[str]) -> list[int | None]:
    """The size of each file, None for one that is missing, by one listing per folder."""
    paths = [PurePosixPath(file) for file in files]
    listings = {folder: _listing(images / folder) for folder in {path.parent for path in paths}}
    return [listings[path.parent].get(path.name) for path in paths]


def _listing(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _existing_sizes(images: Path, files: list[str]) -> list[int]:
    found = file_sizes(images, files)
    missing = [file for file, size in zip(files, found, strict=True) if size is None]
    if missing:
        raise UserError(f"`images` (={images}) lacks {len(missing)} of {len(files)} images, the first is {missing[0]}")
    return [size for size in found if size is not None]


def _unique_keys(files: list[str], within: str) -> list[str]:
    """A readable key per file; a digest of the path is added where a readable one would not be unique."""
    if len(set(files)) < len(files):
        twice = Counter(files).most_common(1)[0][0]
        raise UserError(f"image `{twice}` must be named once in {within}")
    slugs = [re.sub(r"[^0-9A-Za-z_-]+", "-", str(PurePosixPath(file).with_suffix(""))) for file in files]
    counts = Counter(slugs)
    return [
        slug
        if counts[slug] == 1 and len(slug) <= 80
        else f"{slug[:60]}-{hashlib.sha256(file.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        for slug, file in zip(slugs, files, strict=True)
    ]


def _fingerprint(records: list[Record], sizes: list[int]) -> str:
    digest = hashlib.sha256()
    for record, size in zip(records, sizes, strict=True):
        digest.update(json.dumps([record, size], sort_keys=True, default=plain).encode())
    return digest.hexdigest()
