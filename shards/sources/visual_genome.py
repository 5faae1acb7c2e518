"""Visual Genome (Krishna et al., 2017): each image with the phrases of its regions as captions.

    region_descriptions.json    [{"id", "regions": [{"phrase", "x", "y", "width", "height"}]}]
    image_data.json             [{"image_id", "url", "coco_id", ...}]: names the file, which the other files do not
    attributes.json             [{"image_id", "attributes": [{"object_id", "names", "attributes"?, "x", "y", ...}]}]
    relationships.json          [{"image_id", "relationships": [{"predicate", "subject", "object"}]}]

With attributes, the regions of a sample are its objects, each with its attributes, and relations stand between them;
without, they are the described regions, whose label is the phrase. A phrase that repeats in an image is one caption.
Images without a phrase are left out. The published files need some 10 GB of memory.
"""

from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from shards.errors import UserError
from shards.sample import Region, Relation
from shards.sources.annotation_files import bad_entry, read_json
from shards.sources.image_files import ImageFileSource, Record, image_folder

_FORMS = {
    "annotations": ("id", "regions"),
    "image_data": ("image_id", "url"),
    "attributes": ("image_id", "attributes"),
    "relationships": ("image_id", "relationships"),
}


class VisualGenomeSource(ImageFileSource):
    """The images with described regions. Images are read when asked for.

    Args:
        annotations: region_descriptions.json.
        image_data: image_data.json of the same version.
        images: The folder that holds VG_100K and VG_100K_2.
        attributes: attributes.json, or None.
        relationships: relationships.json, or None; needs the attributes, whose objects it relates.

    Raises:
        UserError: a missing or different file, a described image that `image_data` lacks, missing image files.
    """

    name = "visual-genome"

    def __init__(
        self,
        annotations: Path,
        image_data: Path,
        images: Path,
        attributes: Path | None = None,
        relationships: Path | None = None,
    ) -> None:
        image_folder(images)
        if relationships and not attributes:
            raise UserError(f"`relationships` (={relationships}) needs `attributes`, whose objects it relates")
        described = _by_image("annotations", annotations)
        data = _by_image("image_data", image_data)
        objects = _by_image("attributes", attributes) if attributes else {}
        related = _by_image("relationships", relationships) if relationships else {}
        lacking = [image for image in described if image not in data]
        if lacking:
            raise UserError(f"`image_data` (={image_data}) lacks image {lacking[0]}, which `annotations` describes")
        records = []
        for image, entry in described.items():
            try:
                parts = _contents(entry, objects.get(image), related.get(image), bool(attributes))
                record = _record(image, entry, data[image], *parts)
            except (KeyError, TypeError, ValueError, AttributeError):
                raise bad_entry(annotations, f"an entry (image {image})", "the files of Visual Genome 1.2") from None
            if record.captions:
                records.append(record)
        if not records:
            raise UserError(f"`annotations` (={annotations}) must describe regions of at least one image")
        super().__init__(images, records)


def _by_image(option: str, path: Path) -> dict[int, dict[str, Any]]:
    """The entries of a file by the id of their image."""
    content = read_json(Path(path), option)
    identity, needed = _FORMS[option]
    fits = isinstance(content, list) and all(isinstance(e, dict) and {identity, needed} <= e.keys() for e in content)
    if not fits:
        raise UserError(f"`{option}` (={path}) has an unknown form; this needs [{{{identity!r}, {needed!r}, ...}}]")
    return {entry[identity]: entry for entry in content}


def _record(
    image: int,
    entry: dict[str, Any],
    data: dict[str, Any],
    regions: tuple[Region, ...],
    relations: tuple[Relation, ...],
) -> Record:
    phrases = dict.fromkeys(region["phrase"].strip() for region in entry["regions"])
    metadata = {"image_id": image, **{name: data[name] for name in ("coco_id", "flickr_id") if data.get(name)}}
    return Record(_file(data["url"]), tuple(phrase for phrase in phrases if phrase), metadata, regions, relations)


def _file(url: str) -> str:
    """The last two parts of the address, such as VG_100K_2/1.jpg: the path of the file in the published archives."""
    parts = PurePosixPath(urlsplit(url).path).parts
    return "/".join(parts[-2:])


def _contents(
    entry: dict[str, Any], objects: dict[str, Any] | None, related: dict[str, Any] | None, by_object: bool
) -> tuple[tuple[Region, ...], tuple[Relation, ...]]:
    if not by_object:
        return tuple(_described(region) for region in entry["regions"] if region["phrase"].strip()), ()
    listed = objects["attributes"] if objects else []
    places = {thing["object_id"]: i for i, thing in enumerate(listed)}
    regions = tuple(_object(thing) for thing in listed)
    found = related["relationships"] if related else []
    relations = []
    for relation in found:
        subject, target = (places.get(relation[end]["object_id"]) for end in ("subject", "object"))
        if subject is not None and target is not None:  # Objects that `attributes` does not list have no region.
            relations.append(Relation(subject, relation["predicate"].strip().lower(), target))
    return regions, tuple(relations)


def _described(region: dict[str, Any]) -> Region:
    return Region(_box(region, "width", "height"), region["phrase"].strip())


def _object(thing: dict[str, Any]) -> Region:
    attributes = tuple(name.strip() for name in thing.get("attributes") or () if name.strip())
    return Region(_box(thing, "w", "h"), thing["names"][0].strip(), attributes)


def _box(values: dict[str, Any], width: str, height: str) -> tuple[float, float, float, float]:
    left, top = float(values["x"]), float(values["y"])
    return left, top, left + float(values[width]), top + float(values[height])
