"""A finished shard set as a `Source`: any sample by one read at a known place, checked against its checksum."""

import os
import weakref
import zlib
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import DamagedSample
from shards.foreign import foreign_sample
from shards.manifest import Foreign, Manifest, ShardEntry, read_index, read_manifest
from shards.sample import ARRAYS, Identity, Sample, sample_from_members

OPEN_SHARDS = 64
"""Indices and files held at a time, per process: four windows of the stream's order."""
NEAR = 1 << 16
"""Members of a sample that lie apart by less than this, in bytes, are read in one go."""


class ShardSet:
    """Random access to the samples of a folder that `shards build` finished.

    Files are opened at first use, so an instance can be pickled, and used on both sides of a fork.
    Memory grows with the number of shards, not of samples.

    Raises:
        UserError: from the constructor, where the folder holds no finished build.
        DamagedSample: from `[index]`, where bytes are missing or do not match; names shard, ordinal and reason.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        self.manifest: Manifest = read_manifest(self.folder)
        self._starts = [0, *accumulate(shard.samples for shard in self.manifest.shards)]
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        number, ordinal = self._locate(index)
        shard = self.manifest.shards[number]
        try:
            return self._opened(number).read(ordinal)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise DamagedSample(f"{shard.name}, sample {ordinal}: {error}") from error

    def identity(self, index: int) -> Identity:
        number, ordinal = self._locate(index)
        return Identity(self.manifest.shards[number].sha256[:16], ordinal)

    def fingerprint(self) -> str:
        return self.manifest.digest

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def shard_sizes(self) -> list[int]:
        """Samples of each shard, in order."""
        return [shard.samples for shard in self.manifest.shards]

    def place(self, index: int) -> tuple[str, int]:
        """The file name of the shard and the ordinal in it, for messages."""
        number, ordinal = self._locate(index)
        return self.manifest.shards[number].name, ordinal

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def _opened(self, number: int) -> "_OpenShard":
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = _OpenShard(self.folder, self.manifest.shards[number], self.manifest.foreign)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return shard


class _OpenShard:
    """One tar and the columns of its index. `pread` keeps no position, so forked processes may share the descriptor."""

    def __init__(self, folder: Path, entry: ShardEntry, foreign: Foreign | None) -> None:
        self.name, self.foreign = entry.name, foreign
        index = read_index(folder / entry.index_name)
        if index.num_rows != entry.samples:
            raise ValueError(f"its index has {index.num_rows} rows where the manifest says {entry.samples}")
        self.keys = index["key"]
        self.extensions = index["extension"]
        self.places = {name: _places(index, name) for name in ("image", "json", *ARRAYS, "txt")}
        self.descriptor = os.open(folder / entry.name, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self.descriptor)

    def read(self, ordinal: int) -> Sample:
        places = {name: rows[ordinal].tolist() for name, rows in self.places.items()}
        members = self._members({name: place for name, place in places.items() if place[1]})
        key, extension = self.keys[ordinal].as_py(), self.extensions[ordinal].as_py()
        if self.foreign:
            return foreign_sample(self.name, ordinal, key, extension, members, self.foreign)
        return sample_from_members(key, members.pop("image"), extension, members.pop("json"), members)

    def _members(self, places: dict[str, list[int]]) -> dict[str, bytes]:
        """The checked contents of members by name; one read where they lie near each other, as ours do."""
        start = min(offset for offset, _, _ in places.values())
        length = max(offset + size for offset, size, _ in places.values()) - start
        near = length <= 2 * sum(size for _, size, _ in places.values()) + NEAR
        span = os.pread(self.descriptor, length, start) if near else b""
        members = {}
        for name, (offset, size, crc32) in places.items():
            content = span[offset - start :][:size] if near else os.pread(self.descriptor, size, offset)
            members[name] = _checked(name, content, size, crc32)
        return members


def _places(index: pa.Table, name: str) -> np.ndarray:
    """Offset, size and crc32 of one member of each sample, int64 [samples, 3]; zeros where there is none."""
    columns = [
        index[f"{name}_{part}"] for part in ("offset", "size", "crc32") if f"{name}_{part}" in index.column_names
    ]
    if not columns:
        return np.zeros((index.num_rows, 3), dtype=np.int64)
    return np.stack([pc.fill_null(column, 0).to_numpy().astype(np.int64) for column in columns], axis=1)


def _checked(name: str, content: bytes, size: int, crc32: int) -> bytes:
    what = {"json": "record"}.get(name, name)
    if len(content) != size:
        raise ValueError(f"the {what} ends after {len(content)} of {size} bytes")
    if zlib.crc32(content) != crc32:
        raise ValueError(f"the {what} does not match its checksum")
    return content
