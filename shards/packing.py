"""One shard: a stretch of the source's samples as a tar and its index, without those that are not sound.

    source[start:end] -> judge -> sound samples -> shard-N.tar, shard-N.index.parquet (says also what was left out)

A shard counts as done when its index exists and names the digests of the tar and of the plan.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import DamagedSample, SourceGone, UserError
from shards.filters import Filters, Verdict, judge, with_captions
from shards.manifest import (
    INDEX_SCHEMA,
    BuildPlan,
    ShardEntry,
    index_bytes,
    index_name,
    read_index,
    shard_name,
)
from shards.sample import Sample
from shards.sources.base import Source
from shards.storage import replace_atomically, write_atomically
from shards.tar_writer import TarWriter

LONGEST_KEY = 90
"""Bytes; with the longest suffix it fits a tar header."""


@dataclass(slots=True)
class LeftOut:
    """What a stretch of a source has that its shard has not.

    Attributes:
        samples: Index in the source -> reason.
        captions: Captions dropped, by reason, of all samples.
        unkept: Captions that are in no shard: dropped ones, and all of samples that are left out.
    """

    samples: dict[int, str] = field(default_factory=dict)
    captions: Counter[str] = field(default_factory=Counter)
    unkept: int = 0

    def count(self, index: int, sample: Sample, verdict: Verdict) -> None:
        if verdict.reason:
            self.samples[index] = verdict.reason
        self.captions.update(verdict.dropped)
        self.unkept += len(sample.captions) if verdict.reason else verdict.dropped.total()

    def proof(self) -> dict[str, str]:
        """For the metadata of an index; nothing where nothing is left out."""
        if not self.samples and not self.unkept:
            return {}
        values = {"samples": self.samples, "captions": self.captions, "unkept": self.unkept}
        return {"left_out": json.dumps(values, sort_keys=True)}

    @classmethod
    def of(cls, index: pa.Table) -> "LeftOut":
        values = json.loads((index.schema.metadata or {}).get(b"left_out", b"{}"))
        samples = {int(key): reason for key, reason in values.get("samples", {}).items()}
        return cls(samples, Counter(values.get("captions", {})), values.get("unkept", 0))


@dataclass(frozen=True, slots=True)
class Packed:
    """A finished shard; `captions` are those in it."""

    entry: ShardEntry
    captions: int
    left_out: LeftOut


def pack(source: Source, out: Path, plan: BuildPlan, number: int) -> Packed:
    """Writes shard `number`, unless an earlier run finished it and nothing has changed since.

    Raises:
        UserError: a key twice in the shard, too long, or with dots or slashes.
    """
    start = number * plan.samples_per_shard
    indices = range(start, min(start + plan.samples_per_shard, len(source)))
    tar = out / shard_name(number)
    return _finished(tar, len(indices), plan) or _written(source, indices, tar, plan)


def _finished(tar: Path, samples: int, plan: BuildPlan) -> Packed | None:
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
    left_out = LeftOut.of(table)
    if table.num_rows + len(left_out.samples) != samples or not proof.items() <= (table.schema.metadata or {}).items():
        return None
    return _packed(tar, table, digest, index.read_bytes())


def _proof(plan: BuildPlan, tar_sha256: str) -> dict[str, str]:
    return {"plan_sha256": plan.digest, "tar_sha256": tar_sha256}


def _written(source: Source, indices: range, tar: Path, plan: BuildPlan) -> Packed:
    keys: set[str] = set()
    left_out = LeftOut()
    with replace_atomically(tar) as file:
        writer = TarWriter(file)
        for index in indices:
            if sample := _sound(source, index, left_out):
                _check_key(sample.key, index, keys)
                writer.add(sample)
        writer.close()
    digest = writer.sha256.hexdigest()
    content = index_bytes(writer.rows, _proof(plan, digest) | left_out.proof())
    index_file = tar.with_name(index_name(tar.name))
    write_atomically(index_file, content)
    return _packed(tar, read_index(index_file), digest, content)


def _sound(source: Source, index: int, left_out: LeftOut) -> Sample | None:
    """The sample with the captions that can stay; None where there is a reason against it."""
    try:
        sample = source[index]
    except SourceGone:
        raise
    except DamagedSample:
        left_out.samples[index] = "unreadable"
        return None
    verdict = judge(sample, Filters())
    left_out.count(index, sample, verdict)
    return None if verdict.reason else with_captions(sample, verdict.captions)


def _check_key(key: str, index: int, keys: set[str]) -> None:
    """What the source promised; `keys` are those of the shard so far."""
    if not key or "." in key or "/" in key or len(key.encode("utf-8", "surrogatepass")) > LONGEST_KEY:
        raise UserError(f"`key` (={key}) of sample {index} must have 1 to {LONGEST_KEY} bytes and no dots or slashes")
    if key in keys:
        raise UserError(f"`key` (={key}) of sample {index} must be unique, but an earlier sample has it")
    keys.add(key)


def _packed(tar: Path, table: pa.Table, digest: str, index: bytes) -> Packed:
    entry = ShardEntry(
        name=tar.name,
        samples=table.num_rows,
        bytes=tar.stat().st_size,
        sha256=digest,
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    captions = pc.sum(pc.list_value_length(table["caption_words"])).as_py() or 0
    return Packed(entry, captions, LeftOut.of(table))
