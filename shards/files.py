"""The files of a shard set, wherever they lie: a folder, a URL, or a URL behind a cache. `pread` keeps no position, so
forked processes may share a descriptor."""

import hashlib
import os
import weakref
from io import BytesIO
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from shards.cache import FileCache
from shards.errors import Stopped, UserError
from shards.manifest import (
    MANIFEST,
    READ_COLUMNS,
    Manifest,
    ShardEntry,
    check_version,
    decode_manifest,
    read_index,
    read_manifest,
)
from shards.order import WINDOW
from shards.remote import NotServed, Patience, RemoteFolder, is_remote


class Tar(Protocol):
    """The bytes of one shard."""

    def read(self, start: int, size: int) -> bytes:
        """Fewer than `size` where the file ends. Raises OSError where they cannot be had."""
        ...

    def close(self) -> None: ...


class Files(Protocol):
    """What a reader needs of a shard set. `slow` ones are worth reading in several threads."""

    slow: bool

    def manifest(self) -> Manifest: ...

    def index(self, entry: ShardEntry) -> pa.Table:
        """What of the index reading samples takes."""
        ...

    def tar(self, entry: ShardEntry) -> Tar: ...


def open_files(place: str | Path, cache: FileCache | None = None, patience: Patience | None = None) -> Files:
    """Raises UserError for a protocol that is not installed."""
    if not is_remote(place):
        return LocalFiles(Path(place))
    return RemoteFiles(RemoteFolder(str(place), patience or Patience()), cache)


class LocalFiles:
    """A folder."""

    slow = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def manifest(self) -> Manifest:
        return read_manifest(self.folder)

    def index(self, entry: ShardEntry) -> pa.Table:
        return read_index(self.folder / entry.index_name, READ_COLUMNS)

    def tar(self, entry: ShardEntry) -> Tar:
        return LocalTar(self.folder / entry.name)


class LocalTar:
    """An open file."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self.descriptor)

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, start)

    def read_into(self, start: int, view: memoryview) -> int:
        """Fills `view`; returns how many bytes there were. A file that is cut meanwhile is no fault, unlike a map."""
        return os.preadv(self.descriptor, [view], start)


class RemoteFiles:
    """A URL; indices and shards come from the cache where there is one."""

    slow = True

    def __init__(self, folder: RemoteFolder, cache: FileCache | None) -> None:
        self.folder, self.cache = folder, cache

    def manifest(self) -> Manifest:
        """Raises UserError where there is none, Stopped where the server does not give it."""
        try:
            manifest = self.folder.read(MANIFEST, decode_manifest)
        except NotServed as error:
            if error.absent:
                raise UserError(f"`shards` (={self.folder.url}) has no {MANIFEST}") from None
            raise Stopped(str(error)) from error
        check_version(manifest, f"{self.folder.url}/{MANIFEST}")
        if self.cache:
            self._check_limit(self.cache.limit, manifest)
        return manifest

    def index(self, entry: ShardEntry) -> pa.Table:
        content = (
            self.cache.read(f"{self.folder.url}/{entry.index_name}", entry.index_sha256, lambda: self._index(entry))
            if self.cache
            else self._index(entry)
        )
        return read_index(BytesIO(content), READ_COLUMNS)

    def _index(self, entry: ShardEntry) -> bytes:
        return self.folder.read(entry.index_name, lambda content: _checked(content, entry.index_sha256))

    def tar(self, entry: ShardEntry) -> Tar:
        if self.cache and (descriptor := self._cached(self.cache, entry)) is not None:
            os.close(descriptor)
            return _CachedTar(self, self.cache, entry)
        return RemoteTar(self.folder, entry)

    def _cached(self, cache: FileCache, entry: ShardEntry) -> int | None:
        return cache.open(
            f"{self.folder.url}/{entry.name}",
            entry.sha256,
            entry.bytes,
            lambda file: self.folder.download(entry.name, entry.bytes, file),
        )

    def _check_limit(self, limit: int, manifest: Manifest) -> None:
        """With less, the shards of one window of the stream's order would drive each other out."""
        largest = sorted((entry.bytes for entry in manifest.shards), reverse=True)[: WINDOW + 1]
        if sum(largest) > limit:
            raise UserError(
                f"`cache_bytes` (={limit}) must be at least {sum(largest)}, the {len(largest)} largest shards of "
                f"{self.folder.url}, which are read at a time"
            )


class RemoteTar:
    """Each read is a request."""

    def __init__(self, folder: RemoteFolder, entry: ShardEntry) -> None:
        self.folder, self.entry = folder, entry

    def read(self, start: int, size: int) -> bytes:
        return self.folder.read_range(self.entry.name, start, size, self.entry.bytes)

    def close(self) -> None:
        """Nothing is open."""


class _CachedTar(RemoteTar):
    """Each read opens the cached file anew, so that removing it frees its space at once."""

    def __init__(self, files: RemoteFiles, cache: FileCache, entry: ShardEntry) -> None:
        super().__init__(files.folder, entry)
        self.files, self.cache = files, cache

    def read(self, start: int, size: int) -> bytes:
        descriptor = self.files._cached(self.cache, self.entry)
        if descriptor is None:
            return super().read(start, size)
        try:
            return os.pread(descriptor, size, start)
        finally:
            os.close(descriptor)


def _checked(content: bytes, sha256: str) -> bytes:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("they do not match their digest")
    return content
