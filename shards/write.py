"""A source -> shards. Whole or not at all, resumable, and byte-identical however often it is repeated, by whom.

    source -> scan (with filters: which samples are kept) -> a job for each shard -> tars, indices -> manifest

Order of appearance in the folder: `.build.json` (the plan), then for each shard its tar and its index, then
`manifest.json`, which makes the build finished. A shard counts as done when its index exists and names the digests
of the tar and of the plan. Memory does not grow with the number of samples that were written.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from shards.console import Progress
from shards.errors import DamagedSample, UserError
from shards.executors import Executor
from shards.filters import Filters
from shards.keys import repeated_key
from shards.manifest import (
    INDEX_SCHEMA,
    MANIFEST,
    REJECTED,
    BuildPlan,
    FilterReport,
    Manifest,
    ShardEntry,
    index_bytes,
    index_name,
    read_index,
    shard_name,
    to_json,
)
from shards.sample import IMAGE_EXTENSIONS, Sample, array_fault
from shards.scan import FilteredSource, forget_scan, scan
from shards.sources.base import Source
from shards.storage import PARTIAL, locked_folder, replace_atomically, write_atomically
from shards.tar_writer import TarWriter

PLAN = ".build.json"
SCAN = ".scan"
Existing = Literal["refuse", "resume", "overwrite"]


def build_shards(
    source: Source,
    out: Path,
    *,
    samples_per_shard: int = 1000,
    existing: Existing = "refuse",
    settings: Mapping[str, Any] | None = None,
    filters: Filters | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Packs `source` into shards under `out`.

    Args:
        existing: What to do with a finished or unfinished build in `out`: refuse it, go on with it (finished shards are
            checked and kept), or delete its files first. Folders that hold anything else are always refused.
        settings: The source's options, kept in the manifest for people to read.
        filters: Which samples and captions to keep; the counts stand in the manifest, the names in `rejected.parquet`.
        executor: Who does it; the bytes do not depend on it.
        progress: Advanced by the samples of each finished part, in the scan and again in the writing.

    Raises:
        UserError: a folder that may not be used or written, an empty source, filters that keep nothing, a damaged image
            that no filter takes care of, a key twice or too long.
        Stopped: a worker died.
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
        filters=filters.settings if filters else {},
    )
    _check_folder(out, plan, existing)
    with locked_folder(out):
        write_atomically(out / PLAN, to_json(plan))
        if existing == "overwrite":
            _remove_shards(out)
        return _build(source, out, plan, filters, executor or Executor(), progress)


def _build(
    source: Source, out: Path, plan: BuildPlan, filters: Filters | None, executor: Executor, progress: Progress | None
) -> Manifest:
    report = None
    if filters and plan.filters:
        source, report = _filtered(source, out, plan, filters, executor, progress)
    shards = _write_shards(source, out, plan, executor, progress)
    indices = [out / shard.index_name for shard in shards]
    if key := repeated_key(indices, len(source)):
        raise UserError(f"`key` (={key}) must be unique, but two samples of `{source.name}` have it")
    manifest = Manifest(plan=plan, shards=shards, filtered=report)
    write_atomically(out / MANIFEST, to_json(manifest))
    (out / PLAN).unlink()
    forget_scan(out / SCAN)
    return manifest


def _filtered(
    source: Source, out: Path, plan: BuildPlan, filters: Filters, executor: Executor, progress: Progress | None
) -> tuple[Source, FilterReport]:
    """What the filters keep. Finished parts of the scan lie under the plan's digest: no other build takes them."""
    store = out / SCAN / plan.digest
    store.mkdir(parents=True, exist_ok=True)
    selection = scan(source, filters, executor, store, progress)
    if not len(selection.kept):
        raise UserError(f"the filters must keep at least one sample: {'; '.join(selection.report.lines())}")
    if progress:
        progress.advance(selection.report.read - selection.report.kept)  # These need no writing.
    rejections = selection.rejections()
    write_atomically(out / REJECTED, rejections)
    report = selection.report.model_copy(update={"rejections_sha256": hashlib.sha256(rejections).hexdigest()})
    return FilteredSource(source, selection, filters), report


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
    for pattern in (MANIFEST, REJECTED, "shard-[0-9]*.index.parquet", "shard-[0-9]*.tar", f".shard-*{PARTIAL}"):
        for path in sorted(out.glob(pattern)):
            path.unlink()
    forget_scan(out / SCAN)


def _write_shards(
    source: Source, out: Path, plan: BuildPlan, executor: Executor, progress: Progress | None
) -> tuple[ShardEntry, ...]:
    jobs = ((number,) for number in range(-(-len(source) // plan.samples_per_shard)))
    entries: dict[str, ShardEntry] = {}
    for entry in executor.run(_shard, (source, out, plan), jobs):
        entries[entry.name] = entry
        if progress:
            progress.advance(entry.samples)
    return tuple(entries[name] for name in sorted(entries))


def _shard(source: Source, out: Path, plan: BuildPlan, number: int) -> ShardEntry:
    start = number * plan.samples_per_shard
    indices = range(start, min(start + plan.samples_per_shard, len(source)))
    tar = out / shard_name(number)
    return _finished_shard(tar, len(indices), plan) or _write_shard(source, indices, tar, plan)


def _finished_shard(tar: Path, samples: int, plan: BuildPlan) -> ShardEntry | None:
    """The entry of a shard that an earlier run finished and nothing has changed since, else None."""
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
    return _entry(tar, samples, digest, index.read_bytes())


def _proof(plan: BuildPlan, tar_sha256: str) -> dict[str, str]:
    return {"plan_sha256": plan.digest, "tar_sha256": tar_sha256}


def _write_shard(source: Source, indices: range, tar: Path, plan: BuildPlan) -> ShardEntry:
    keys: set[str] = set()
    with replace_atomically(tar) as file:
        writer = TarWriter(file)
        for index in indices:
            sample = _checked(source, index, keys)
            try:
                writer.add(sample)
            except UnicodeEncodeError:
                raise UserError(
                    f"sample {index} (`{sample.key}`) must hold text, but half a surrogate pair is in it"
                ) from None
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
    """Reads one sample and holds it to the rules of `Sample`; `keys` are those of its shard so far."""
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
