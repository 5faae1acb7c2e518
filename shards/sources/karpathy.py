"""Karpathy-split JSON, the form in which COCO and Flickr30K are used for retrieval (Karpathy & Fei-Fei, 2015).

{"images": [{"filename": ..., "filepath"?: ..., "split": ..., "sentences": [{"raw": ...}, ...], ...}]}

`filepath` is a folder below the image folder. The number of sentences may differ between images. Every other scalar
of the entry (`cocoid`, `imgid`, `concept` ...) and `sentids` are kept as metadata, and `file` is the path below the
image folder.
"""

import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from shards.errors import DamagedSample, UserError
from shards.sample import Identity, Sample

_NEEDED = 'a Karpathy file: {"images": [{"filename", "split", "sentences": [{"raw"}]}]}'


class KarpathySource:
    """One split, or several joined as in `train+restval`. Images are read when asked for.

    Args:
        annotations: The JSON file.
        images: The folder that `filepath`/`filename` start from.

    Raises:
        UserError: a missing or different annotation file, a split without images, missing image files, an image without
            captions.
    """

    name = "karpathy"

    def __init__(self, annotations: Path, images: Path, split: str) -> None:
        self.images = Path(images)
        if not self.images.is_dir():
            raise UserError(f"`images` (={images}) must be a folder")
        entries = _in_split(_read_entries(Path(annotations)), split)
        self._records = [_record(entry) for entry in entries]
        self._keys = _unique_keys([record["file"] for record in self._records])
        sizes = _file_sizes(self.images, [record["file"] for record in self._records])
        self._fingerprint = _fingerprint(self._records, sizes)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        try:
            image = (self.images / record["file"]).read_bytes()
        except OSError as error:
            raise DamagedSample(f"{record['file']}: {error.strerror}") from error
        return Sample(
            key=self._keys[index],
            image=image,
            extension=PurePosixPath(record["file"]).suffix[1:].lower(),
            captions=record["captions"],
            metadata={**record["metadata"], "file": record["file"]},
        )

    def identity(self, index: int) -> Identity:
        return Identity(self._fingerprint[:16], index)

    def fingerprint(self) -> str:
        """Over the split's records and the sizes of its image files: their bytes are not all read."""
        return self._fingerprint


def _read_entries(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"`annotations` (={path}) must be a file")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"`annotations` (={path}) is not JSON: {error}") from None
    entries = content.get("images") if isinstance(content, dict) else None
    fits = isinstance(entries, list) and all(_is_entry(entry) for entry in entries)
    if not fits or not entries:
        raise UserError(f"`annotations` (={path}) {_looks_like(content)}; this needs {_NEEDED}")
    return entries


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("sentences"), list):
        return False
    texts = [sentence.get("raw") for sentence in entry["sentences"] if isinstance(sentence, dict)]
    named = all(isinstance(entry.get(field), str) for field in ("filename", "split"))
    return named and len(texts) == len(entry["sentences"]) and all(isinstance(text, str) for text in texts)


def _looks_like(content: Any) -> str:
    if isinstance(content, dict) and {"annotations", "images"} <= content.keys():
        return "looks like an official COCO captions file"
    if (
        isinstance(content, list)
        and content
        and isinstance(content[0], dict)
        and {"image", "caption"} <= content[0].keys()
    ):
        return "looks like an ALBEF list"
    if isinstance(content, dict) and isinstance(content.get("images"), list) and content["images"]:
        bad = next((i for i, entry in enumerate(content["images"]) if not _is_entry(entry)), 0)
        return f"has an entry (images[{bad}]) of another form"
    return "is JSON of an unknown form"


def _in_split(entries: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    counts = Counter(entry["split"] for entry in entries)
    parts = split.split("+")
    for part in parts:
        if not counts[part]:
            known = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
            raise UserError(f"`split` (={part}) must name images; the file has {known}")
    return [entry for entry in entries if entry["split"] in parts]


def _record(entry: dict[str, Any]) -> dict[str, Any]:
    """Captions, file and metadata of one entry. Captions without text are dropped together with their id."""
    file = str(PurePosixPath(entry.get("filepath") or "") / entry["filename"])
    kept = [sentence for sentence in entry["sentences"] if sentence["raw"].strip()]
    if not kept:
        raise UserError(f"image `{file}` must have at least one caption")
    metadata: dict[str, Any] = {
        name: value
        for name, value in entry.items()
        if name not in {"filename", "filepath"} and isinstance(value, str | int | float | None)
    }
    sentids = [sentence["sentid"] for sentence in kept if "sentid" in sentence]
    if sentids:
        metadata["sentids"] = sentids
    return {"file": file, "captions": tuple(sentence["raw"].strip() for sentence in kept), "metadata": metadata}


def _unique_keys(files: list[str]) -> list[str]:
    """A readable key per file; a digest of the path is added where a readable one would not be unique."""
    if len(set(files)) < len(files):
        twice = Counter(files).most_common(1)[0][0]
        raise UserError(f"image `{twice}` must be named once in a split")
    slugs = [re.sub(r"[^0-9A-Za-z_-]+", "-", str(PurePosixPath(file).with_suffix(""))) for file in files]
    counts = Counter(slugs)
    return [
        slug
        if counts[slug] == 1 and len(slug) <= 80
        else f"{slug[:60]}-{hashlib.sha256(file.encode()).hexdigest()[:16]}"
        for slug, file in zip(slugs, files, strict=True)
    ]


def _file_sizes(images: Path, files: list[str]) -> list[int]:
    """Sizes of all files, by one listing per folder. Raises UserError for those that are missing."""
    folders = {str(PurePosixPath(file).parent) for file in files}
    sizes = {folder: _listing(images / folder) for folder in folders}
    found = [sizes[str(path.parent)].get(path.name) for path in map(PurePosixPath, files)]
    missing = [file for file, size in zip(files, found, strict=True) if size is None]
    if missing:
        raise UserError(f"`images` (={images}) lacks {len(missing)} of {len(files)} images, the first is {missing[0]}")
    return [size for size in found if size is not None]


def _listing(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _fingerprint(records: list[dict[str, Any]], sizes: list[int]) -> str:
    digest = hashlib.sha256()
    for record, size in zip(records, sizes, strict=True):
        digest.update(json.dumps([record, size], sort_keys=True).encode())
    return digest.hexdigest()
