"""A finished shard set as a `Source`: any sample by one read at a known place, checked against its checksum."""

import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from isal.isal_zlib import crc32 as crc32_of

from shards.blocks import Room
from shards.cache import FileCache
from shards.errors import DamagedSample
from shards.files import Files, LocalTar, open_files
from shards.foreign import foreign_sample
from shards.manifest import MEMBERS, Foreign, Manifest, ShardEntry
from shards.remote import NotServed, Patience
from shards.sample import Encoded, Identity, Sample, sample_from_members
from shards.soundness import MEMBER_BYTES

OPEN_SHARDS = 64
"""Indices and files held at a time, per process: four windows of the stream's order."""
NEAR = 1 << 16
"""Members of a sample that lie apart by less than this, in bytes, are read in one go."""


READERS = 16
"""Requests under way at a time, per process."""

GIVEN_UP_SECONDS = 300.0
"""How long a remote shard that could not be read, after all tries, is not asked for again."""

UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException)
"""What bytes that are missing or wrong may raise."""


class ShardSet:
    """Random access to the samples of a folder or URL that holds what `shards build` finished.

    Files are opened at first use, so an instance can be pickled, and used on both sides of a fork.
    Memory grows with the number of shards, not of samples.

    Args:
        place: A folder, or a URL of http(s), s3, hf or another protocol of fsspec.
        cache: Keeps remote shards on a local disk; without one, each sample is read where it lies.
        patience: How long remote reads may take.

    Raises:
        UserError: from the constructor, where the place holds no finished build or the cache is too small.
        DamagedSample: from `[index]`, where bytes are missing or do not match; names shard, ordinal and reason.
    """

    def __init__(self, place: str | Path, cache: FileCache | None = None, patience: Patience | None = None) -> None:
        self.files = open_files(place, cache, patience)
        self.address = str(place)
        self.name = str(place).rstrip("/").rpartition("/")[2]
        self.manifest: Manifest = self.files.manifest()
        self._digests = [shard.sha256[:16] for shard in self.manifest.shards]
        self._starts = [0, *accumulate(shard.samples for shard in self.manifest.shards)]
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._expected: dict[int, Sample | DamagedSample] = {}
        self._given_up: dict[int, tuple[float, str]] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        return self.read_into(index, None)

    def read_into(self, index: int, room: Room | None) -> Sample:
        """As `[index]`; the image of a local shard is a view of `room`, as long as there is space."""
        found = self._expected.pop(index, None) if self._expected else None
        found = found or self._read(index, room)
        if isinstance(found, DamagedSample):
            raise found
        return found

    def expect(self, indices: Iterable[int]) -> None:
        """Reads samples that are about to be asked for, several at a time where each read has to wait for a server."""
        self._expected = {}
        if self.files.slow:
            wanted = sorted(set(indices))
            for index in wanted:  # opened one by one: the threads share what is open
                number, _ = self._locate(index)
                try:
                    self._opened(number)
                except UNREADABLE as error:
                    self._give_up(number, error)
            with ThreadPoolExecutor(READERS) as pool:
                self._expected = dict(zip(wanted, pool.map(self._read, wanted), strict=True))

    def _read(self, index: int, room: Room | None = None) -> Sample | DamagedSample:
        number, ordinal = self._locate(index)
        try:
            return self._opened(number).read(ordinal, room)
        except UNREADABLE as error:
            self._give_up(number, error)
            return DamagedSample(f"{self.manifest.shards[number].name}, sample {ordinal}: {error}")

    def identity(self, index: int) -> Identity:
        number, ordinal = self._locate(index)
        return Identity(self._digests[number], ordinal)

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
        return {**self.__dict__, "_open": OrderedDict(), "_expected": {}}

    def _locate(self, index: int) -> tuple[int, int]:
        return locate(self._starts, index)

    def _opened(self, number: int) -> "_OpenShard":
        if self._given_up:
            self._check_given_up(number)
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = _OpenShard(self.files, self.manifest.shards[number], self.manifest.foreign)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return shard

    def _check_given_up(self, number: int) -> None:
        until, reason = self._given_up.get(number, (0.0, ""))
        if time.monotonic() < until:
            raise NotServed(reason)

    def _give_up(self, number: int, error: BaseException) -> None:
        """Remembers a shard that the server did not give after all tries, so that not each of its samples waits."""
        if isinstance(error, NotServed):
            self._given_up[number] = (time.monotonic() + GIVEN_UP_SECONDS, str(error))


def locate(starts: list[int], index: int) -> tuple[int, int]:
    """The shard and the place in it of sample `index`, from the running number of samples before each, and of all."""
    if not 0 <= index < starts[-1]:
        raise IndexError(f"sample {index} of {starts[-1]}")
    number = bisect_right(starts, index) - 1
    return number, index - starts[number]


class _OpenShard:
    """One tar and the columns of its index."""

    def __init__(self, files: Files, entry: ShardEntry, foreign: Foreign | None) -> None:
        self.name, self.foreign = entry.name, foreign
        index = files.index(entry)
        if index.num_rows != entry.samples:
            raise ValueError(f"its index has {index.num_rows} rows where the manifest says {entry.samples}")
        tar = (index.schema.metadata or {}).get(b"tar_sha256", entry.sha256.encode())
        if tar.decode() != entry.sha256:
            raise ValueError("its index is that of another shard")
        self.keys, self.extensions = index["key"].combine_chunks(), index["extension"].combine_chunks()
        places = {name: _places(index, name) for name in MEMBERS}
        self.members = [name for name, place_N3 in places.items() if place_N3.any()]
        self.places_NM3 = np.stack([places[name] for name in self.members or ["image"]], axis=1)
        most_M = np.array([MEMBER_BYTES[name] for name in self.members or ["image"]])
        self.too_large_N: np.ndarray = np.any(self.places_NM3[..., 1] > most_M, axis=1)
        self.tar, self.slow = files.tar(entry), files.slow
        self.local = self.tar if isinstance(self.tar, LocalTar) else None
        self.close = self.tar.close

    def read(self, ordinal: int, room: Room | None) -> Sample:
        if self.too_large_N[ordinal]:
            sizes = dict(zip(self.members, self.places_NM3[ordinal, :, 1].tolist(), strict=True))
            name, size = next((name, size) for name, size in sizes.items() if size > MEMBER_BYTES[name])
            raise ValueError(f"the {name} has {size} bytes, more than {MEMBER_BYTES[name]}")
        members = self._members(self.places_NM3[ordinal].tolist(), room)
        key, extension = self.keys[ordinal].as_py(), self.extensions[ordinal].as_py()
        if self.foreign:
            return foreign_sample(self.name, ordinal, key, extension, members, self.foreign)
        return sample_from_members(key, members.pop("image", b""), extension, members.pop("json"), members)

    def _members(self, places: list[list[int]], room: Room | None) -> dict[str, Any]:
        """The checked contents of members by name: bytes, of the image a view where there is room."""
        contents = self._read_together(places) if self.slow else self._read_each(places, room)
        found = {}
        for name, (_, size, crc32), content in zip(self.members, places, contents, strict=True):
            if size:
                if len(content) != size or crc32_of(content) != crc32:
                    raise ValueError(_fault(name, len(content), size))
                found[name] = content
        return found

    def _read_each(self, places: list[list[int]], room: Room | None = None) -> list[Encoded]:
        """What is read is not copied again: on a local disk that costs more than another read."""
        return [
            self._read_one(name, offset, size, room) if size else b""
            for name, (offset, size, _) in zip(self.members, places, strict=True)
        ]

    def _read_one(self, name: str, offset: int, size: int, room: Room | None) -> Encoded:
        if room and name == "image" and self.local:
            content = room.fill(size, partial(self.local.read_into, offset))
            if content is not None:
                return content
        return self.tar.read(offset, size)

    def _read_together(self, places: list[list[int]]) -> list[Encoded]:
        """One read where the members lie near each other, as ours do."""
        start, end, total = places[0][0], 0, 0
        for offset, size, _ in places:
            if size:
                start, end, total = min(start, offset), max(end, offset + size), total + size
        if end - start > 2 * total + NEAR:
            return self._read_each(places)
        span = self.tar.read(start, end - start)
        return [span[offset - start : offset - start + size] if size else b"" for offset, size, _ in places]


def _places(index: pa.Table, name: str) -> np.ndarray:
    """Offset, size and crc32 of one member of each sample, int64 [N, 3]; zeros where there is none."""
    places_N3 = np.zeros((index.num_rows, 3), dtype=np.int64)
    for part, values_N in zip(("offset", "size", "crc32"), places_N3.T, strict=True):
        if f"{name}_{part}" in index.column_names:
            column = index[f"{name}_{part}"].combine_chunks()
            # Not `to_numpy` or `fill_null`: they import pandas, which takes each worker half a second.
            rows = np.from_dlpack(pc.indices_nonzero(column.is_valid())) if column.null_count else slice(None)
            values_N[rows] = np.from_dlpack(column.drop_null())
    return places_N3


def _fault(name: str, found: int, size: int) -> str:
    what = "record" if name == "json" else name
    return (
        f"the {what} does not match its checksum" if found == size else f"the {what} ends after {found} of {size} bytes"
    )
