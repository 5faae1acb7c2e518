"""Bytes on a local disk: files that appear whole or not at all."""

import errno
import fcntl
import os
import shutil
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
    try:
        with replaced(path) as file:
            yield file
    except OSError as error:
        raise _cannot_write(path.parent, error) from error


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """`replace_atomically` for those who know what to do about an OSError."""
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_path(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_new_file(out: Path, overwrite: bool) -> None:
    """Refuses before the work what would be refused after it.

    Raises:
        UserError: `out` exists and may not be replaced, or has no folder to lie in.
    """
    if out.exists() and not overwrite:
        raise UserError(f"`out` (={out}) exists: give --overwrite to replace it")
    if not out.parent.is_dir():
        raise UserError(f"`out` (={out}) must lie in a folder that exists")


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


@contextmanager
def replace_folder_atomically(path: Path, overwrite: bool = False, mark: str = "") -> Iterator[Path]:
    """Yields an empty folder that takes the name `path` when the block ends well, and is removed when it does not.

    Until then it is `.NAME.partial` beside it. Files and entries are on disk on return. An earlier folder stays until
    the new one is whole; two renames replace it.

    Args:
        overwrite: Whether a folder at `path` may be replaced.
        mark: A file that an earlier folder must hold to be replaced: others are not ours to delete.

    Raises:
        UserError: `path` exists and may not be replaced, another process is writing it, or the disk cannot take it.
    """
    if path.exists() and not overwrite:
        raise UserError(f"`out` (={path}) must not exist yet; replace it with --overwrite")
    if path.exists() and not (path / mark).is_file():
        raise UserError(f"`out` (={path}) holds no {mark}, so it is not replaced")
    temporary, old = path.with_name(f".{path.name}{PARTIAL}"), path.with_name(f".{path.name}.old")
    with locked_folder(temporary):
        try:
            _empty(temporary)
            yield temporary
            for file in temporary.rglob("*"):
                sync_path(file)
            sync_path(temporary)
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                os.rename(path, old)
            os.rename(temporary, path)
            sync_path(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise _cannot_write(path.parent, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
