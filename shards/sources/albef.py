"""The JSON list of ALBEF and BLIP (Li et al., 2021), in which COCO, Visual Genome, SBU and Flickr30K circulate.

[{"image": ..., "caption": ... or [...], "image_id"?: ...}, ...]

An image that repeats is one sample with all its captions, at the place of its first entry. `image` is a path below the
image folder, or an absolute one that leads there. `image_id` is kept as metadata, and `file` is the path below the
image folder. Other fields are left out.
"""

from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.sources.annotation_files import bad_entry, read_json_form
from shards.sources.image_files import ImageFileSource, Record, captions_of, file_below, image_folder

_NEEDED = 'an ALBEF list: [{"image", "caption": text or [texts], "image_id"?}]'


class AlbefSource(ImageFileSource):
    """The images of one list. Images are read when asked for.

    Args:
        annotations: The JSON file.
        images: The folder that `image` starts from.

    Raises:
        UserError: a missing or different annotation file, an image without captions or with two `image_id`, missing
            image files.
    """

    name = "albef"

    def __init__(self, annotations: Path, images: Path | None) -> None:
        if images:
            image_folder(images)
        super().__init__(images, _records(Path(annotations), images))


def _records(path: Path, images: Path | None) -> list[Record]:
    captions: dict[str, list[str]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for i, entry in enumerate(read_json_form(path, AlbefSource.name, _NEEDED)):
        if not _is_entry(entry):
            raise bad_entry(path, f"an entry ([{i}])", _NEEDED)
        file = file_below(images, entry["image"])
        captions.setdefault(file, []).extend(_texts(entry))
        given = {"image_id": entry["image_id"]} if "image_id" in entry else {}
        if metadata.setdefault(file, given) != given:
            raise UserError(f"image `{file}` must have the same `image_id` in all entries, but [{i}] differs")
    return [Record(file, captions_of(file, captions[file]), metadata[file]) for file in captions]


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("image"), str)
        and isinstance(entry.get("caption"), str | list)
        and all(isinstance(text, str) for text in _texts(entry))
        and isinstance(entry.get("image_id"), str | int | None)
    )


def _texts(entry: dict[str, Any]) -> list[Any]:
    caption = entry["caption"]
    return [caption] if isinstance(caption, str) else caption
