"""A finished shard set as a `Source`: any sample by one read at a known place, checked against its checksum."""

import os
import zlib
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.errors import DamagedSample
from shards.manifest import Manifest, ShardEntry, read_index, read_manifest
from shards.sample import Identity, Sample, sample_from_json

OPEN_SHARDS = 64
"""Indices and files held at a time, per process: four windows of the stream's order."""


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
            shard = self._open[number] = _OpenShard(self.folder, self.manifest.shards[number])
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return shard


class _OpenShard:
    """One tar and the columns of its index. `pread` keeps no position, so forked processes may share the descriptor."""

    def __init__(self, folder: Path, entry: ShardEntry) -> None:
        index = read_index(folder / entry.index_name)
        if index.num_rows != entry.samples:
            raise ValueError(f"its index has {index.num_rows} rows where the manifest says {entry.samples}")
        self.keys = index["key"]
        self.extensions = index["extension"]
        names = ("image_offset", "image_size", "image_crc32", "json_offset", "json_size", "json_crc32")
        self.places = [index[name].to_numpy() for name in names]
        self.descriptor = os.open(folder / entry.name, os.O_RDONLY)

    def read(self, ordinal: int) -> Sample:
        image_at, image_size, image_crc, json_at, json_size, json_crc = (int(place[ordinal]) for place in self.places)
        # The record lies right behind the image: one read for both.
        span = os.pread(self.descriptor, json_at + json_size - image_at, image_at)
        image, record = span[:image_size], span[json_at - image_at :]
        _check("image", image, image_size, image_crc)
        _check("record", record, json_size, json_crc)
        return sample_from_json(self.keys[ordinal].as_py(), image, self.extensions[ordinal].as_py(), record)

    def close(self) -> None:
        os.close(self.descriptor)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            self.close()
            del self.descriptor


def _check(what: str, content: bytes, size: int, crc32: int) -> None:
    if len(content) != size:
        raise ValueError(f"the {what} ends after {len(content)} of {size} bytes")
    if zlib.crc32(content) != crc32:
        raise ValueError(f"the {what} does not match its checksum")
