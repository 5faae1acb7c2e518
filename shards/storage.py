"""Bytes on a local disk: files that appear whole or not at all."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shards.errors import UserError

PARTIAL = ".partial"


@contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the name `path` when the block ends well, and is removed when it does not.

    Until then it is `.NAME.partial`, which no `*.tar` matches. The bytes and the folder entry are on disk on return.

    Raises:
        UserError: the folder cannot take the bytes (full, read-only, not permitted).
    """
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_path(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _cannot_write(path.parent, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """`replace_atomically` for bytes at hand."""
    with replace_atomically(path) as file:
        file.write(content)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Creates `folder` where needed and holds a lock on it, so that two builds cannot share it.

    The lock leaves no file and ends with the process, however that ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"`out` (={folder}) is being written by another build") from None
    except OSError:
        pass  # Some network file systems have no locks; building alone is then the user's care.


def _cannot_write(folder: Path, error: OSError) -> UserError:
    advice = "; free some space and go on with --resume" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    return UserError(f"`out` (={folder}) cannot be written: {(error.strerror or str(error)).lower()}{advice}")


def sync_path(path: Path) -> None:
    """Puts a file, or the entries of a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
