"""Region features of bottom-up attention (Anderson et al., 2018) joined to a corpus of images and captions.

Tables with tabs between base64 columns, in the two published forms:

    image_id image_w image_h num_boxes boxes features                                       (10 to 100 boxes)
    img_id img_h img_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features   (LXMERT, 36 boxes)

Boxes are (left, top, right, bottom) in pixels, float32 [K, 4]; features float32 [K, D]; ids int64 [K], confidences
float32 [K]. A line belongs to the image whose file name it gives, without extension, or whose number stands at the end
of the file name (COCO and Flickr30K ids). Lines are found by one pass over the table and read when asked for.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from shards.decode import image_size
from shards.errors import DamagedSample, UserError
from shards.sample import Identity, Region, Sample
from shards.sources.annotation_files import require_file
from shards.sources.image_files import ImageFileSource

_FORMS = {
    6: ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    10: (
        *("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
        *("num_boxes", "boxes", "features"),
    ),
}
"""Column names by their number."""


@dataclass(frozen=True, slots=True)
class _Detections:
    """One line: its image's size, and what was detected; ids and confidences are empty in the form without them."""

    width: int
    height: int
    boxes: np.ndarray
    features: np.ndarray
    objects: np.ndarray
    objects_conf: np.ndarray
    attributes: np.ndarray
    attributes_conf: np.ndarray


class BottomUpSource:
    """The images of `corpus` that the table has regions of; of a corpus without image files, the regions alone.

    Args:
        objects: Vocabulary of the detector, a name (and synonyms behind commas) in each line; else labels are numbers.
        attributes: The same for attributes.
        half: Keep the features as float16.

    Attributes:
        skipped: Images without regions.

    Raises:
        UserError: a missing or different table or vocabulary, an image named twice, no image with regions.
    """

    name = "bottom-up"

    def __init__(
        self,
        corpus: ImageFileSource,
        features: Path,
        objects: Path | None = None,
        attributes: Path | None = None,
        half: bool = False,
    ) -> None:
        self.corpus, self.features, self.half = corpus, Path(features), half
        require_file("features", self.features)
        self.objects = _vocabulary("objects", objects) if objects else None
        self.attributes = _vocabulary("attributes", attributes) if attributes else None
        places, digest = _find_lines(self.features)
        found = [(i, _place(file, places)) for i, file in enumerate(corpus.files)]
        self._lines = [(i, place) for i, place in found if place is not None]
        self.skipped = len(corpus) - len(self._lines)
        if not self._lines:
            example = f"`{corpus.files[0]}` and `{next(iter(places))}`" if places else "an empty table"
            raise UserError(f"`features` (={features}) must name an image of the corpus, whose names differ: {example}")
        parts = (corpus.fingerprint(), digest, half, self.objects, self.attributes)
        self._fingerprint = hashlib.sha256("/".join(map(repr, parts)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Sample:
        number, (offset, size) = self._lines[index]
        sample = self.corpus[number]
        with self.features.open("rb") as file:
            file.seek(offset)
            line = file.read(size)
        try:
            found = _parse(line)
        except (ValueError, UnicodeDecodeError) as error:
            raise DamagedSample(f"the regions of {sample.metadata['file']} cannot be read: {error}") from error
        if sample.extension and image_size(sample.image) != (found.width, found.height):
            size_here = "x".join(map(str, image_size(sample.image)))
            raise DamagedSample(
                f"{sample.metadata['file']} is {size_here}, but its regions are of {found.width}x{found.height}"
            )
        return self._joined(sample, found)

    def identity(self, index: int) -> Identity:
        return Identity(self._fingerprint[:16], index)

    def fingerprint(self) -> str:
        return self._fingerprint

    def _joined(self, sample: Sample, found: _Detections) -> Sample:
        """Tags are the distinct labels, the surest first, where the vocabulary is known (Oscar, Li et al., 2020)."""
        regions = tuple(self._region(found, i) for i in range(len(found.boxes)))
        surest = sorted(regions, key=lambda region: -region.score)
        tags = tuple(dict.fromkeys(region.label for region in surest)) if self.objects and len(found.objects) else ()
        metadata: Mapping[str, Any] = sample.metadata
        if not sample.extension:
            metadata = {**metadata, "width": found.width, "height": found.height}
        if len(found.attributes_conf):
            metadata = {**metadata, "attribute_scores": [round(float(score), 6) for score in found.attributes_conf]}
        features = found.features.astype(np.float16) if self.half else found.features
        return replace(sample, regions=regions, tags=tags, metadata=metadata, region_features=features)

    def _region(self, found: _Detections, i: int) -> Region:
        left, top, right, bottom = (float(value) for value in found.boxes[i])
        label = _named(self.objects, found.objects, i)
        attribute = _named(self.attributes, found.attributes, i)
        score = float(found.objects_conf[i]) if len(found.objects_conf) else 1.0
        return Region((left, top, right, bottom), label, (attribute,) if attribute else (), score)


def _named(names: list[str] | None, ids: np.ndarray, i: int) -> str:
    """The name of the i-th id, its number without a vocabulary, nothing where the table has no ids."""
    if not len(ids):
        return ""
    number = int(ids[i])
    if names is None:
        return str(number)
    if not 0 <= number < len(names):
        raise DamagedSample(f"class {number} is not in a vocabulary of {len(names)}")
    return names[number]


def _vocabulary(option: str, path: Path) -> list[str]:
    require_file(option, path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"`{option}` (={path}) must be UTF-8") from None
    return [line.split(",")[0].strip() for line in lines]


def _find_lines(path: Path) -> tuple[dict[str, tuple[int, int]], str]:
    """Offset and size of each image's line, and the sha256 of the whole."""
    places: dict[str, tuple[int, int]] = {}
    digest, offset = hashlib.sha256(), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            digest.update(line)
            name = line.split(b"\t", 1)[0].decode("utf-8", "replace")
            columns = line.count(b"\t") + 1
            if columns not in _FORMS:
                raise UserError(f"line {number} of `features` (={path}) must have 6 or 10 columns, not {columns}")
            if name in places:
                raise UserError(f"`features` (={path}) must name image {name} once, but line {number} does again")
            places[name] = (offset, len(line))
            offset += len(line)
    return places, digest.hexdigest()


def _place(file: str, places: dict[str, tuple[int, int]]) -> tuple[int, int] | None:
    stem = PurePosixPath(file).stem
    if stem in places:
        return places[stem]
    number = re.search(r"\d+$", stem)
    return places.get(str(int(number[0]))) if number else None


def _parse(line: bytes) -> _Detections:
    """Raises ValueError for columns that are not what the form says."""
    fields = line.rstrip(b"\r\n").split(b"\t")
    values = dict(zip(_FORMS[len(fields)], fields, strict=True))
    boxes = int(values["num_boxes"])

    def column(name: str, dtype: str, width: int | None = None) -> np.ndarray:
        if name not in values:
            return np.empty(0, dtype=dtype)
        array = np.frombuffer(base64.b64decode(values[name], validate=True), dtype=dtype)
        if not boxes or len(array) % boxes or (width and len(array) != boxes * width):
            raise ValueError(f"`{name}` has {len(array)} numbers for {boxes} boxes")
        return array

    return _Detections(
        int(values["image_w"]),
        int(values["image_h"]),
        column("boxes", "<f4", 4).reshape(boxes, 4),
        column("features", "<f4").reshape(boxes, -1),
        column("objects_id", "<i8", 1),
        column("objects_conf", "<f4", 1),
        column("attrs_id", "<i8", 1),
        column("attrs_conf", "<f4", 1),
    )
