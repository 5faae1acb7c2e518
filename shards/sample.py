"""The record: one image, its captions, and what is known of its content. The only schema of the shards.

In a tar, sample `KEY` is two adjacent members: `KEY.jpg` (or .png ...: the encoded image, never re-encoded) and
`KEY.json` (everything else, canonical JSON). A third, `KEY.txt`, holds the first caption for readers that know no JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

SCHEMA_VERSION = 1
IMAGE_EXTENSIONS = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"}


@dataclass(frozen=True, slots=True)
class Region:
    """A box in pixels of the stored image, (left, top, right, bottom), with what a detector or an author says of it."""

    box: tuple[float, float, float, float]
    label: str
    attributes: tuple[str, ...] = ()
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class Relation:
    """`regions[subject]` stands in `predicate` to `regions[object]`."""

    subject: int
    predicate: str
    object: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One image-text record.

    Attributes:
        key: Unique inside its shard set; no dots or slashes, since readers split member names at the first dot.
        image: The encoded file, byte for byte.
        extension: The image file's type, lower case without a dot.
        captions: At least one text; the number may differ between samples.
        metadata: JSON values of the source, for grouping (`concept`) or filtering.
    """

    key: str
    image: bytes
    extension: str
    captions: tuple[str, ...]
    regions: tuple[Region, ...] = ()
    relations: tuple[Relation, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Identity(NamedTuple):
    """Which sample this is, whatever its key: the digest of its shard and its place inside."""

    shard: str
    ordinal: int


def record_json(sample: Sample) -> bytes:
    """Everything but the image as canonical JSON: equal samples give equal bytes."""
    record = {
        "captions": sample.captions,
        "regions": [asdict(region) for region in sample.regions],
        "relations": [asdict(relation) for relation in sample.relations],
        "tags": sample.tags,
        "metadata": sample.metadata,
    }
    return json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def sample_from_json(key: str, image: bytes, extension: str, record: bytes) -> Sample:
    """The reverse of `record_json`. Raises ValueError, KeyError or TypeError where the JSON is no record."""
    values = json.loads(record)
    return Sample(
        key=key,
        image=image,
        extension=extension,
        captions=tuple(values["captions"]),
        regions=tuple(_region(**region) for region in values["regions"]),
        relations=tuple(Relation(**relation) for relation in values["relations"]),
        tags=tuple(values["tags"]),
        metadata=values["metadata"],
    )


def _region(box: list[float], label: str, attributes: list[str], score: float) -> Region:
    left, top, right, bottom = box
    return Region((left, top, right, bottom), label, tuple(attributes), score)
