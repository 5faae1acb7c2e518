"""The record: one image, its captions, and what is known of its content. The only schema of the shards.

In a tar, sample `KEY` is two adjacent members: `KEY.jpg` (or .png ...: the encoded image, never re-encoded) and
`KEY.json` (everything else, canonical JSON). Behind them, where the sample has them, `KEY.features.npy` and
`KEY.probabilities.npy` (what a detector says of the regions), and last `KEY.txt`, the first caption for readers that
know no JSON. Shapes: K regions, D numbers each, C classes.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeAlias

import numpy as np

SCHEMA_VERSION = 1
Encoded: TypeAlias = bytes | memoryview
"""An encoded image. A view looks into memory that is used again when nobody looks into it."""
IMAGE_EXTENSIONS = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"}
ARRAYS = {"features": "region_features", "probabilities": "region_probabilities"}
"""Member `KEY.NAME.npy` -> field of the sample."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One image-text record.

    Attributes:
        key: Unique inside its shard set; no dots or slashes, since readers split member names at the first dot.
        image: The encoded file, byte for byte; a stream without `transform` gives a view of it (`bytes(image)` makes
            a copy, pickling does, too). Empty where features of regions are all there is of the image. Its
            `width` and `height` in pixels are then in the metadata.
        extension: The image file's type, lower case without a dot; empty without one.
        captions: At least one text; the number may differ between samples.
        metadata: JSON values of the source, for grouping (`concept`) or filtering.
        region_features: [K, D] float16 or float32, a row for each region, or None.
        region_probabilities: [K, C] float16 or float32, a detector's distribution over its classes, or None.
    """

    key: str
    image: Encoded
    extension: str
    captions: tuple[str, ...]
    regions: tuple[Region, ...] = ()
    relations: tuple[Relation, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    region_features: np.ndarray | None = None
    region_probabilities: np.ndarray | None = None

    def __eq__(self, other: object) -> bool:
        """Of all fields; arrays are equal when type, shape and every bit are."""
        if not isinstance(other, Sample):
            return NotImplemented
        return all(_comparable(getattr(self, f.name)) == _comparable(getattr(other, f.name)) for f in fields(self))

    def __reduce__(self) -> tuple[type["Sample"], tuple[Any, ...]]:
        """Pickled and copied with its bytes, where it has a view of them."""
        values = (getattr(self, f.name) for f in fields(self))
        return type(self), tuple(bytes(value) if isinstance(value, memoryview) else value for value in values)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that the sample has, by their name in `ARRAYS`."""
        found = {name: getattr(self, attribute) for name, attribute in ARRAYS.items()}
        return {name: array for name, array in found.items() if array is not None}


class Identity(NamedTuple):
    """Which sample this is, whatever its key: the digest of its shard and its place inside."""

    shard: str
    ordinal: int


def record_json(sample: Sample) -> bytes:
    """Everything but the image as canonical JSON: equal samples give equal bytes."""
    record = {
        "captions": sample.captions,
        "regions": sample.regions,
        "relations": sample.relations,
        "tags": sample.tags,
        "metadata": sample.metadata,
    }
    return json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=plain).encode()


def plain(value: Any) -> dict[str, Any]:
    """A `Region`, `Relation` or other slotted record as a mapping, for JSON; `asdict` takes much longer."""
    return {name: getattr(value, name) for name in value.__slots__}


def array_bytes(array: np.ndarray) -> bytes:
    """The `.npy` file of an array: format 1.0, little-endian, in C order, so that equal arrays give equal bytes."""
    buffer = io.BytesIO()
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, plain, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def array_from_bytes(content: bytes) -> np.ndarray:
    """The reverse of `array_bytes`. Raises ValueError where the bytes are no such file."""
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # Damage may look like any size and any header.
        raise ValueError(f"it is no array: {error}") from error


def array_fault(array: np.ndarray, regions: int) -> str:
    """Why `array` cannot describe so many regions; empty where it can."""
    if array.dtype not in (np.float16, np.float32):
        return f"has type {array.dtype}, not float16 or float32"
    if array.ndim != 2 or len(array) != regions:
        return f"has shape {list(array.shape)}, not a row for each of {regions} regions"
    return "" if np.isfinite(array).all() else "has values that are not finite"


def sample_from_members(
    key: str, image: Encoded, extension: str, record: bytes, arrays: Mapping[str, bytes] | None = None
) -> Sample:
    """The reverse of `record_json` and `array_bytes`.

    Args:
        arrays: The `.npy` files that are there, by their name in `ARRAYS`.

    Raises:
        ValueError, KeyError, TypeError: JSON that is no record, arrays that do not fit it.
    """
    values = json.loads(record.decode())
    read = {ARRAYS[name]: _fitting(name, content, values) for name, content in (arrays or {}).items()}
    regions, relations = values["regions"], values["relations"]
    return Sample(
        key,
        image,
        extension,
        tuple(values["captions"]),
        tuple([_region(**region) for region in regions]),
        tuple([Relation(**relation) for relation in relations]),
        tuple(values["tags"]),
        values["metadata"],
        **read,
    )


def _fitting(name: str, content: bytes, record: Mapping[str, Any]) -> np.ndarray:
    array = array_from_bytes(content)
    if fault := array_fault(array, len(record["regions"])):
        raise ValueError(f"the array of {name} {fault}")
    return array


def _comparable(value: Any) -> Any:
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def _region(box: list[float], label: str, attributes: list[str], score: float) -> Region:
    left, top, right, bottom = box
    return Region((left, top, right, bottom), label, tuple(attributes), score)
