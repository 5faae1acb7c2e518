"""Karpathy-split JSON, the form in which COCO and Flickr30K are used for retrieval (Karpathy & Fei-Fei, 2015).

{"images": [{"filename": ..., "filepath"?: ..., "split": ..., "sentences": [{"raw": ...}, ...], ...}]}

`filepath` is a folder below the image folder. The number of sentences may differ between images. Every other scalar
of the entry (`cocoid`, `imgid`, `concept` ...) and `sentids` are kept as metadata, and `file` is the path below the
image folder.
"""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from shards.errors import UserError
from shards.sources.annotation_files import FORMS, json_form, read_json
from shards.sources.image_files import ImageFileSource, Record, captions_of, image_folder

_NEEDED = 'a Karpathy file: {"images": [{"filename", "split", "sentences": [{"raw"}]}]}'


class KarpathySource(ImageFileSource):
    """One split, or several joined as in `train+restval`. Images are read when asked for.

    Args:
        annotations: The JSON file.
        images: The folder that `filepath`/`filename` start from.

    Raises:
        UserError: a missing or different annotation file, a split without images, missing image files, an image without
            captions.
    """

    name = "karpathy"

    def __init__(self, annotations: Path, images: Path | None, split: str) -> None:
        if images:
            image_folder(images)
        entries = _in_split(_read_entries(Path(annotations)), split)
        super().__init__(images, [_record(entry) for entry in entries], within="a split")


def _read_entries(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
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
    form = json_form(content)
    if form and form != "karpathy":
        return f"looks like {FORMS[form]}"
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


def _record(entry: dict[str, Any]) -> Record:
    """Captions, file and metadata of one entry. Captions without text are dropped together with their id."""
    file = str(PurePosixPath(entry.get("filepath") or "") / entry["filename"])
    kept = [sentence for sentence in entry["sentences"] if sentence["raw"].strip()]
    captions = captions_of(file, (sentence["raw"] for sentence in kept))
    metadata: dict[str, Any] = {
        name: value
        for name, value in entry.items()
        if name not in {"filename", "filepath"} and isinstance(value, str | int | float | None)
    }
    sentids = [sentence["sentid"] for sentence in kept if "sentid" in sentence]
    if sentids:
        metadata["sentids"] = sentids
    return Record(file, captions, metadata)
