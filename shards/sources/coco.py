"""COCO captions in the official form, `captions_train2014.json` and its like (Chen et al., 2015).

{"images": [{"id": ..., "file_name": ...}, ...], "annotations": [{"image_id": ..., "id": ..., "caption": ...}, ...]}

One file is one part of the corpus. Captions are joined to images by `image_id`, in the order of the file; their number
may differ between images. `cocoid` and `sentids` are kept as metadata under the names that the Karpathy form uses, and
`file` is the path below the image folder. Sizes, licences and addresses of the images are left out.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.sources.annotation_files import bad_entry, read_json_form
from shards.sources.image_files import ImageFileSource, Record, captions_of, file_below, image_folder

Id = int | str
_NEEDED = (
    'an official COCO captions file: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "id", "caption"}]}'
)
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": (str,)},
    "annotations": {"image_id": (int, str), "id": (int, str), "caption": (str,)},
}


class CocoSource(ImageFileSource):
    """The images of one `captions_*.json`. Images are read when asked for.

    Args:
        annotations: The JSON file.
        images: The folder that `file_name` starts from, such as `train2014`.

    Raises:
        UserError: a missing or different annotation file, captions of no image, an image without captions or named
            twice, missing image files.
    """

    name = "coco"

    def __init__(self, annotations: Path, images: Path | None) -> None:
        if images:
            image_folder(images)
        super().__init__(images, _records(Path(annotations), images))


def _records(path: Path, images: Path | None) -> list[Record]:
    content = read_json_form(path, CocoSource.name, _NEEDED)
    for part, fields in _FIELDS.items():
        _check_entries(path, part, content[part], fields)
    captions: dict[Id, list[tuple[Id, str]]] = defaultdict(list)
    for entry in content["annotations"]:
        if entry["caption"].strip():
            captions[entry["image_id"]].append((entry["id"], entry["caption"]))
    ids = {entry["id"] for entry in content["images"]}
    if len(ids) < len(content["images"]):
        raise UserError(f"`annotations` (={path}) must give each image an `id` of its own")
    orphans = [image_id for image_id in captions if image_id not in ids]
    if orphans:
        raise UserError(f"`annotations` (={path}) has a caption of image_id {orphans[0]!r}, which `images` must list")
    return [_record(images, entry, captions[entry["id"]]) for entry in content["images"]]


def _check_entries(path: Path, part: str, entries: Any, fields: dict[str, tuple[type, ...]]) -> None:
    if not isinstance(entries, list):
        raise bad_entry(path, f"`{part}`", _NEEDED)
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), kinds) for name, kinds in fields.items()):
            raise bad_entry(path, f"an entry ({part}[{i}])", _NEEDED)


def _record(images: Path | None, entry: dict[str, Any], captions: list[tuple[Id, str]]) -> Record:
    file = file_below(images, entry["file_name"])
    metadata = {"cocoid": entry["id"], "sentids": [sentid for sentid, _ in captions]}
    return Record(file, captions_of(file, (text for _, text in captions)), metadata)
