"""Remote files on a local disk, shared by the processes of a node: each is fetched once, and all of them fit a limit.

A file's name is a digest of its full address and of its content's sha256, so equal names elsewhere do not collide and a
replaced file is another one. Locks end with the process that holds them. A file appears whole or not at all; the least
recently used go first. Readers open a file for each read: what another process removes is fetched again.
"""

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shards.errors import UserError
from shards.storage import PARTIAL, replaced

STRIPES = 64
"""Lock files; two different shards rarely share one, and then only wait."""
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

log = logging.getLogger(__name__)


class FileCache:
    """A folder that holds at most `limit` bytes of remote files, those being written included.

    Raises:
        UserError: a folder that cannot be written.
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        self._told = False
        if limit < 1:
            raise UserError(f"`cache_bytes` (={limit}) must be at least 1")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked("room"):
                self._remove_remains()
        except OSError as error:
            raise UserError(
                f"`cache` (={folder}) cannot be written: {(error.strerror or str(error)).lower()}"
            ) from None

    def open(self, address: str, sha256: str, size: int, fetch: Callable[[BinaryIO], str]) -> int | None:
        """A descriptor of the file at `address`, which the caller closes; None where it cannot be kept here.

        Args:
            fetch: Writes the file's `size` bytes and returns their hex sha256; called by one process at a time.

        Raises:
            Whatever `fetch` raises.
        """
        path = self._path(address, sha256)
        if (descriptor := _opened(path)) is not None or _refused(path).exists():
            return descriptor
        with self._locked(_stripe(path.name)):
            if (descriptor := _opened(path)) is None and self._fetched(path, address, sha256, size, fetch):
                descriptor = _opened(path)
        return descriptor

    def read(self, address: str, sha256: str, fetch: Callable[[], bytes]) -> bytes:
        """The content of a small file, whose digest `fetch` has checked; kept here where it can be."""
        path = self._path(address, sha256)
        with self._locked(_stripe(path.name)):
            if (descriptor := _opened(path)) is not None:
                with open(descriptor, "rb") as file:
                    return file.read()
            content = fetch()
            self._fetched(path, address, sha256, len(content), lambda file: _write(file, content))
        return content

    def _path(self, address: str, sha256: str) -> Path:
        return self.folder / hashlib.sha256(f"{address}\n{sha256}".encode()).hexdigest()

    def _fetched(self, path: Path, address: str, sha256: str, size: int, fetch: Callable[[BinaryIO], str]) -> bool:
        try:
            with self._locked("room"):
                if not self._made_room(size):
                    return False
                partial = path.with_name(f".{path.name}{PARTIAL}")
                partial.touch()
                os.truncate(partial, size)  # counted as its full size from now on
            with replaced(path) as file:
                file.truncate(size)
                if fetch(file) != sha256:
                    raise _Damaged
            return True
        except _Damaged:
            log.warning("%s does not match its digest: it is not kept, and each sample is checked", address)
            _refused(path).touch()
        except OSError as error:
            if error.errno not in DISK:
                raise
            self._tell(f"{self.folder} takes no more: {(error.strerror or str(error)).lower()}")
        return False

    def _made_room(self, size: int) -> bool:
        """Removes the least recently used files until `size` bytes fit; with the lock on the room."""
        files = []
        for path in self.folder.iterdir():
            if not path.name.startswith("lock-"):
                with suppress(FileNotFoundError):  # another process has just given a partial file its name
                    stat = path.stat()
                    files.append((stat.st_mtime_ns, stat.st_size, path))
        used = sum(held for _, held, _ in files)
        for _, held, path in sorted(files):
            if used + size <= self.limit:
                break
            if not path.name.endswith(PARTIAL):
                path.unlink(missing_ok=True)
                used -= held
        if used + size > self.limit:
            self._tell(f"{self.folder} cannot hold {size} more bytes within `cache_bytes` (={self.limit})")
            return False
        return True

    def _remove_remains(self) -> None:
        """Partial files of processes that ended: those whose lock is free."""
        for path in self.folder.glob(f".*{PARTIAL}"):
            stripe = _stripe(path.name.removeprefix(".").removesuffix(PARTIAL))
            with suppress(BlockingIOError), self._locked(stripe, wait=False):
                path.unlink(missing_ok=True)

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            log.warning("%s; shards are read from where they lie", why)

    @contextmanager
    def _locked(self, name: str, wait: bool = True) -> Iterator[None]:
        descriptor = os.open(self.folder / f"lock-{name}", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
        finally:
            os.close(descriptor)


class _Damaged(Exception):
    """What was fetched is not what was expected."""


def _stripe(name: str) -> str:
    return f"{int(name, 16) % STRIPES:02d}"


def _refused(path: Path) -> Path:
    """Marks content that was not what was expected, so that not every process fetches it to find out."""
    return path.with_suffix(".refused")


def _write(file: BinaryIO, content: bytes) -> str:
    file.write(content)
    return hashlib.sha256(content).hexdigest()


def _opened(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    os.utime(descriptor)  # the time of last use, whatever the file system does with access times
    return descriptor
