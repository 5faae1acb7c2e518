"""What a shard set consists of: `manifest.json`, the commit point, and one index per shard.

`manifest.json` is written last. A folder without it is a build that has not finished. Each `shard-NNNNNN.tar` has a
`shard-NNNNNN.index.parquet` beside it, one row per sample:

    key              string   name of the sample in the tar, without extension
    extension        string   image type
    image_offset     int64    first byte of the image in the tar;  image_size, image_crc32 likewise
    json_offset      int64    first byte of the record;  json_size, json_crc32 likewise
    features_offset  int64    first byte of the region features;  features_size, features_crc32 likewise; null where
                              the sample has none; probabilities_* likewise; older indices lack these columns
    txt_offset       int64    first byte of the text of a foreign tar;  txt_size, txt_crc32 likewise; else null
    width, height    int32    of the image as stored (EXIF orientation not applied)
    caption_words    list     number of words of each caption
"""

import hashlib
import json
from collections.abc import Collection
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from shards.errors import UserError
from shards.sample import ARRAYS, SCHEMA_VERSION

MANIFEST = "manifest.json"
REJECTED = "rejected.parquet"
"""Beside the manifest of a filtered build: `index` in the source and `reason` of each sample that was rejected."""
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("extension", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("image_crc32", pa.uint32()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("json_crc32", pa.uint32()),
        *(
            (f"{name}_{column}", kind)
            for name in (*ARRAYS, "txt")
            for column, kind in (("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.uint32()))
        ),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption_words", pa.list_(pa.int32())),
    ]
)


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardEntry(_Frozen):
    """One tar: its size and the digests of its bytes and of its index."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str

    @property
    def index_name(self) -> str:
        return index_name(self.name)


class BuildPlan(_Frozen):
    """Everything that decides the bytes of a build; a build goes on only under an equal plan.

    `samples` are those of the source, before the filters. `settings` are the source's options as the user gave them:
    for people, the fingerprint covers them.
    """

    schema_version: int = SCHEMA_VERSION
    source: str
    fingerprint: str
    samples: int
    samples_per_shard: int
    settings: dict[str, Any] = {}
    filters: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """Hex sha256; every index carries it, so that shards of another plan are never taken for this one's."""
        return hashlib.sha256(to_json(self)).hexdigest()

    def difference(self, other: "BuildPlan") -> str:
        """Names the first setting that differs, as "`seed` (=1), not 2"; empty for equal plans."""
        mine, theirs = self._flat(), other._flat()
        for name in mine | theirs:
            if mine.get(name) != theirs.get(name):
                return f"`{name}` (={mine.get(name)}), not {theirs.get(name)}"
        return ""

    def _flat(self) -> dict[str, Any]:
        """Settings first: they say more than a fingerprint."""
        return {
            **self.settings,
            **{f"filters.{name}": value for name, value in self.filters.items()},
            **self.model_dump(exclude={"settings", "filters", "fingerprint"}),
            "fingerprint": self.fingerprint,
        }


class Foreign(_Frozen):
    """Marks tars of another tool's making; captions come from this field of the JSON, or from .txt, else `caption`."""

    caption_field: str | None = None


class FilterReport(_Frozen):
    """What became of every sample and caption: read = kept + all rejected.

    Attributes:
        rejected: Samples by reason.
        captions_dropped: Captions by reason, of all samples, the rejected ones included.
        unscored: Samples that lack the number that a filter looks at, and passed it, by filter.
        rejections_sha256: Of `rejected.parquet`, which names each rejected sample.
    """

    read: int
    kept: int
    rejected: dict[str, int]
    captions_read: int
    captions_dropped: dict[str, int]
    unscored: dict[str, int]
    rejections_sha256: str = ""

    def lines(self) -> list[str]:
        """For people: one line for samples, one for captions where any were dropped."""
        lines = [f"{self.read} samples read, {self.kept} kept{_listed(self.rejected)}"]
        if self.captions_dropped:
            kept = self.captions_read - sum(self.captions_dropped.values())
            lines.append(f"{self.captions_read} captions read, {kept} kept{_listed(self.captions_dropped)}")
        lines += [f"{count} samples have no number for {name}, and passed it" for name, count in self.unscored.items()]
        return lines


def _listed(counts: dict[str, int]) -> str:
    return "".join(f", {count} rejected by {name}" for name, count in counts.items())


class Manifest(_Frozen):
    """The whole of a finished build.

    Attributes:
        filtered: What the filters, or the reading of foreign tars, kept and rejected.
        foreign: Given where `shards manifest` indexed tars that `shards build` did not write.
    """

    plan: BuildPlan
    shards: tuple[ShardEntry, ...]
    filtered: FilterReport | None = None
    foreign: Foreign | None = None

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over the shards' digests in order: equal digests mean equal samples in equal places."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def index_name(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.index.parquet"


def to_json(model: BaseModel) -> bytes:
    """Canonical: equal models give equal bytes."""
    return (json.dumps(model.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Reads `manifest.json`.

    Raises:
        UserError: no such folder, no finished build in it, or a manifest of another form or version.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"`shards` (={folder}) is not a folder")
    if not path.is_file():
        raise UserError(f"`shards` (={folder}) has no {MANIFEST}: run `shards build`, or finish it with --resume")
    try:
        manifest = decode_manifest(path.read_bytes())
    except ValueError as error:
        raise UserError(f"`shards` (={folder}) has a damaged {MANIFEST}: {error}") from None
    check_version(manifest, path)
    return manifest


def decode_manifest(content: bytes) -> Manifest:
    """Raises ValueError, in a few words, where the bytes are no manifest."""
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        reason = error.errors()[0]
        place = ".".join(str(part) for part in reason["loc"])
        raise ValueError(f"{place} {reason['msg'].lower()}") from None


def check_version(manifest: Manifest, path: object) -> None:
    """Raises UserError where this version of the software cannot read the shards."""
    if manifest.plan.schema_version != SCHEMA_VERSION:
        raise UserError(f"`schema_version` (={manifest.plan.schema_version}) of {path} must be {SCHEMA_VERSION}")


def index_bytes(rows: list[dict[str, Any]], proof: dict[str, str]) -> bytes:
    """The parquet bytes of an index; `proof`, digests of its tar and plan, goes inside and shows the pair finished."""
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA.with_metadata(proof))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


MEMBERS = ("image", "json", *ARRAYS, "txt")
"""What a sample may have in its shard, as the index names it."""
READ_COLUMNS = frozenset(
    {"key", "extension"} | {f"{name}_{part}" for name in MEMBERS for part in ("offset", "size", "crc32")}
)
"""Of the index, what reading samples takes."""


def read_index(file: Path | BytesIO, columns: Collection[str] | None = None) -> pa.Table:
    """Reads one index, or those of `columns` that it has; raises OSError or `pyarrow.ArrowInvalid` where it is missing
    or damaged."""
    opened = pa.OSFile(str(file)) if isinstance(file, Path) else file  # Finding the file's system takes 0.1 ms.
    with pq.ParquetFile(opened, pre_buffer=False) as index:
        wanted = None if columns is None else [name for name in index.schema_arrow.names if name in columns]
        # No threads: the reader runs in forked workers, where a parent's thread pool is not alive.
        return index.read(columns=wanted, use_threads=False)
