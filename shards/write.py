"""A source -> shards. Whole or not at all, resumable, and byte-identical however often it is repeated.

Order of appearance in the folder: `.build.json` (the plan), then for each shard its tar and its index, then
`manifest.json`, which makes the build finished. A shard counts as done when its index exists and names the digests
of the tar and of the plan.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from shards.console import Progress
from shards.decode import image_size
from shards.errors import DamagedSample, UserError
from shards.manifest import (
    INDEX_SCHEMA,
    MANIFEST,
    BuildPlan,
    Manifest,
    ShardEntry,
    index_bytes,
    index_name,
    read_index,
    shard_name,
    to_json,
)
from shards.sample import IMAGE_EXTENSIONS, Sample, array_bytes, array_fault, record_json
from shards.sources.base import Source
from shards.storage import PARTIAL, locked_folder, replace_atomically, write_atomically

PLAN = ".build.json"
BLOCK = 512
Existing = Literal["refuse", "resume", "overwrite"]


def build_shards(
    source: Source,
    out: Path,
    *,
    samples_per_shard: int = 1000,
    existing: Existing = "refuse",
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Packs `source` into shards under `out`.

    Args:
        existing: What to do with a finished or unfinished build in `out`: refuse it, go on with it (finished shards are
            checked and kept), or delete its files first. Folders that hold anything else are always refused.
        settings: The source's options, kept in the manifest for people to read.
        progress: Advanced by the samples of each finished shard's part.

    Raises:
        UserError: a folder that may not be used or written, an empty source, a damaged image, a key twice or too long.
    """
    if samples_per_shard < 1:
        raise UserError(f"`samples_per_shard` (={samples_per_shard}) must be at least 1")
    if not len(source):
        raise UserError(f"`source` (={source.name}) must hold at least one sample")
    plan = BuildPlan(
        source=source.name,
        fingerprint=source.fingerprint(),
        samples=len(source),
        samples_per_shard=samples_per_shard,
        settings=dict(settings or {}),
    )
    _check_folder(out, plan, existing)
    with locked_folder(out):
        write_atomically(out / PLAN, to_json(plan))
        if existing == "overwrite":
            _remove_shards(out)
        manifest = Manifest(plan=plan, shards=_write_shards(source, out, plan, progress))
        write_atomically(out / MANIFEST, to_json(manifest))
        (out / PLAN).unlink()
    return manifest


def _check_folder(out: Path, plan: BuildPlan, existing: Existing) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"`out` (={out}) must be a folder")
    names = [p.name for p in out.iterdir() if not p.name.endswith(PARTIAL)] if out.exists() else []
    if not names:
        return
    held = _plan_in(out)
    if held is None:
        raise UserError(f"`out` (={out}) must be new, empty or hold a build of shards, but it holds {sorted(names)[0]}")
    if existing == "refuse":
        state = "a finished build" if MANIFEST in names else "an unfinished build"
        raise UserError(f"`out` (={out}) holds {state}: give --resume to go on with it or --overwrite to replace it")
    if existing == "resume" and (difference := held.difference(plan)):
        raise UserError(f"`out` (={out}) holds a build with {difference}: use the same settings or --overwrite")


def _plan_in(out: Path) -> BuildPlan | None:
    with suppress(OSError, ValueError):
        return Manifest.model_validate_json((out / MANIFEST).read_bytes()).plan
    with suppress(OSError, ValueError):
        return BuildPlan.model_validate_json((out / PLAN).read_bytes())
    return None


def _remove_shards(out: Path) -> None:
    """Deletes what an earlier build wrote, the commit point first; other files stay."""
    for pattern in (MANIFEST, "shard-[0-9]*.index.parquet", "shard-[0-9]*.tar", f".shard-*{PARTIAL}"):
        for path in sorted(out.glob(pattern)):
            path.unlink()


def _write_shards(source: Source, out: Path, plan: BuildPlan, progress: Progress | None) -> tuple[ShardEntry, ...]:
    entries: list[ShardEntry] = []
    keys: set[str] = set()
    for number, start in enumerate(range(0, plan.samples, plan.samples_per_shard)):
        indices = range(start, min(start + plan.samples_per_shard, plan.samples))
        tar = out / shard_name(number)
        entry = _finished_shard(tar, len(indices), plan, keys)
        if entry is None:
            entry = _write_shard(source, indices, tar, plan, keys, progress)
        elif progress:
            progress.advance(len(indices))
        entries.append(entry)
    return tuple(entries)


def _finished_shard(tar: Path, samples: int, plan: BuildPlan, keys: set[str]) -> ShardEntry | None:
    """The entry of a shard that an earlier run finished and nothing has changed since, else None; notes its keys."""
    index = tar.with_name(index_name(tar.name))
    try:
        table = read_index(index)
        with tar.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, pa.ArrowException):
        return None
    proof = {key.encode(): value.encode() for key, value in _proof(plan, digest).items()}
    if not table.schema.equals(INDEX_SCHEMA):
        return None  # An older version wrote it: kept, the folder would not equal a build that was not interrupted.
    if table.num_rows != samples or not proof.items() <= (table.schema.metadata or {}).items():
        return None
    keys.update(table["key"].to_pylist())
    return _entry(tar, samples, digest, index.read_bytes())


def _proof(plan: BuildPlan, tar_sha256: str) -> dict[str, str]:
    return {"plan_sha256": plan.digest, "tar_sha256": tar_sha256}


def _write_shard(
    source: Source, indices: range, tar: Path, plan: BuildPlan, keys: set[str], progress: Progress | None
) -> ShardEntry:
    with replace_atomically(tar) as file:
        writer = _TarWriter(file)
        for index in indices:
            writer.add(_checked(source, index, keys))
            if progress:
                progress.advance()
        writer.close()
    digest = writer.sha256.hexdigest()
    content = index_bytes(writer.rows, _proof(plan, digest))
    write_atomically(tar.with_name(index_name(tar.name)), content)
    return _entry(tar, len(indices), digest, content)


def _entry(tar: Path, samples: int, digest: str, index: bytes) -> ShardEntry:
    return ShardEntry(
        name=tar.name,
        samples=samples,
        bytes=tar.stat().st_size,
        sha256=digest,
        index_sha256=hashlib.sha256(index).hexdigest(),
    )


def _checked(source: Source, index: int, keys: set[str]) -> Sample:
    """Reads one sample and holds it to the rules of `Sample`."""
    try:
        sample = source[index]
    except DamagedSample as error:
        raise UserError(f"sample {index} of `{source.name}` cannot be read: {error}") from None
    key = sample.key
    if not key or "." in key or "/" in key or len(key.encode()) > 90:
        raise UserError(f"`key` (={key}) of sample {index} must have 1 to 90 bytes and no dots or slashes")
    if key in keys:
        raise UserError(f"`key` (={key}) of sample {index} must be unique, but an earlier sample has it")
    if sample.extension not in IMAGE_EXTENSIONS:
        raise UserError(f"`extension` (={sample.extension}) of `{key}` must be one of {sorted(IMAGE_EXTENSIONS)}")
    if not sample.captions:
        raise UserError(f"sample {index} (`{key}`) must have at least one caption")
    for name, array in sample.arrays().items():
        if fault := array_fault(array, len(sample.regions)):
            raise UserError(f"the region {name} of sample {index} (`{key}`) cannot be used: the array {fault}")
    keys.add(key)
    return sample


class _TarWriter:
    """Plain USTAR with fixed owner, mode and time; remembers where everything went."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.offset = 0
        self.sha256 = hashlib.sha256()
        self.rows: list[dict[str, Any]] = []

    def add(self, sample: Sample) -> None:
        try:
            width, height = image_size(sample.image)
        except DamagedSample as error:
            raise UserError(f"image `{sample.metadata.get('file', sample.key)}` is damaged: {error}") from None
        record = record_json(sample)
        self.rows.append(
            {
                "key": sample.key,
                "extension": sample.extension,
                **self._member("image", f"{sample.key}.{sample.extension}", sample.image),
                **self._member("json", f"{sample.key}.json", record),
                **self._arrays(sample),
                "width": width,
                "height": height,
                "caption_words": [len(caption.split()) for caption in sample.captions],
            }
        )
        self._member("txt", f"{sample.key}.txt", sample.captions[0].encode())

    def _arrays(self, sample: Sample) -> dict[str, int]:
        row: dict[str, int] = {}
        for name, array in sample.arrays().items():
            row |= self._member(name, f"{sample.key}.{name}.npy", array_bytes(array))
        return row

    def close(self) -> None:
        self._write(bytes(2 * BLOCK))

    def _member(self, field: str, name: str, content: bytes) -> dict[str, int]:
        header = tarfile.TarInfo(name)
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
        offset = self.offset
        self._write(content + bytes(-len(content) % BLOCK))
        return {f"{field}_offset": offset, f"{field}_size": len(content), f"{field}_crc32": zlib.crc32(content)}

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.sha256.update(content)
        self.offset += len(content)
