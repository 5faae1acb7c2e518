"""Bytes at a URL: http(s), s3, hf or any other protocol of fsspec, in bounded time, of the right length or not at all.

    read, read_range, download -> tries with waits in between -> one request of fsspec's, with a limit on its time

A request is tried again when another try may help: a busy or failing server, a broken connection, a body that is too
short or is a page of HTML. It is not when the server is clear: not found, not allowed. Retry-After is honoured.
"""

import email.utils
import hashlib
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from shards.errors import UserError

T = TypeVar("T")
CHUNK = 4 * 2**20
"""Bytes of one request while a whole file is fetched."""

FOR_GOOD = range(400, 500)
"""HTTP statuses that another try does not change,"""
BUSY = {408, 425, 429}
"""but for these."""
ABSENT = {404, 410}

EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3"}
ONE_TRY: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}}
"""What makes a filesystem leave repeating to us."""

log = logging.getLogger(__name__)


class NotServed(OSError):
    """A remote file cannot be read, after all tries; `absent` where the server says that there is none."""

    def __init__(self, message: str, absent: bool = False) -> None:
        super().__init__(message)
        self.absent = absent


@dataclass(frozen=True)
class Patience:
    """How long a remote read may take: `timeout` seconds a request, `tries` requests, `total` seconds for all of them.

    Waits double from `first_wait` seconds, less up to a half at random, unless the server says how long.
    """

    timeout: float = 30.0
    tries: int = 6
    total: float = 120.0
    first_wait: float = 0.5


def is_remote(place: object) -> bool:
    """Whether a place is a URL rather than a path."""
    return isinstance(place, str) and "://" in place


class RemoteFolder:
    """The files below a URL. Can be pickled, and used on both sides of a fork.

    Settings of a protocol (endpoint, credentials) are fsspec's own, from its configuration files or the environment.

    Raises:
        UserError: a protocol that is unknown or not installed.
        NotServed: from the methods, a file that cannot be had.
    """

    def __init__(self, url: str, patience: Patience = Patience()) -> None:
        self.url, self.patience = url.rstrip("/"), patience
        self.protocol = url.split("://")[0]
        self._filesystems: dict[int, Any] = {}  # by process: a parent's stays alive, for closing it would close theirs
        self._random = random.Random()
        self._ignores_ranges = False
        _check_protocol(self.protocol, url)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_filesystems": {}}

    def read(self, name: str, parse: Callable[[bytes], T]) -> T:
        """The whole of a small file, as `parse` makes it; ValueError from there counts as a bad answer."""
        return self._repeat(name, lambda: _parsed(self._request(name, None, None), parse))

    def read_range(self, name: str, start: int, size: int, total: int) -> bytes:
        """`size` bytes from `start` on, of a file of `total` bytes."""
        body = self._repeat(name, lambda: self._range(name, start, size, total))
        return body if len(body) == size else body[start : start + size]

    def download(self, name: str, total: int, file: BinaryIO) -> str:
        """Writes a file of `total` bytes to `file`; returns the hex sha256 of what came."""
        digest, at = hashlib.sha256(), 0
        while at < total:
            size = min(CHUNK, total - at)
            body = self._repeat(name, lambda at=at, size=size: self._range(name, at, size, total))  # type: ignore[misc]
            body = body if len(body) == size else body[at:]
            file.write(body)
            digest.update(body)
            at += len(body)
        return digest.hexdigest()

    def _range(self, name: str, start: int, size: int, total: int) -> bytes:
        """The bytes asked for; the whole file where the server knows no ranges."""
        if size == 0:
            return b""
        body = self._request(name, start, start + size)
        if len(body) == size:
            return body
        if len(body) != total:
            raise ValueError(f"the server sent {_what(body)} instead of {size}")
        if not self._ignores_ranges:
            self._ignores_ranges = True
            log.warning("%s sends whole files when asked for a part: reading is slow without a cache", self.url)
        return body

    def _request(self, name: str, start: int | None, end: int | None) -> bytes:
        url, filesystem = f"{self.url}/{name}", self._filesystem()
        if filesystem.async_impl:
            from fsspec.asyn import sync

            limit = self.patience.timeout
            return sync(filesystem.loop, filesystem._cat_file, url, start=start, end=end, timeout=limit)
        return filesystem.cat_file(url, start, end, cache_type="none")  # the protocol's own limits on time

    def _filesystem(self) -> Any:
        process = os.getpid()
        if process not in self._filesystems:
            import fsspec

            options = ONE_TRY.get(self.protocol, {})
            made = fsspec.filesystem(self.protocol, skip_instance_cache=True, **options)
            if self.protocol in ONE_TRY:
                made.retries = 1
            self._filesystems[process] = made
        return self._filesystems[process]

    def _repeat(self, name: str, request: Callable[[], T]) -> T:
        """Tries until `request` succeeds, another try cannot help or patience ends."""
        start, wait = time.monotonic(), self.patience.first_wait
        for tried in range(1, self.patience.tries + 1):
            try:
                return request()
            except Exception as error:  # fsspec's protocols raise what their libraries raise
                status, advice = _reply(error)
                reason = _sentence(error, status)
                pause = advice if advice is not None else wait * self._random.uniform(0.5, 1.0)
                absent = isinstance(error, FileNotFoundError) or status in ABSENT
                hopeless = absent or isinstance(error, PermissionError) or (status in FOR_GOOD and status not in BUSY)
                late = time.monotonic() + pause - start > self.patience.total
                if hopeless or late or tried == self.patience.tries:
                    times = "" if tried == 1 else f" after {tried} tries in {time.monotonic() - start:.0f} s"
                    raise NotServed(f"{self.url}/{name} cannot be read{times}: {reason}", absent) from error
                log.debug("%s/%s: %s; again in %.1f s", self.url, name, reason, pause)
                time.sleep(pause)
                wait *= 2
        raise AssertionError("a loop of at least one try returns or raises")


def _parsed(body: bytes, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(body)
    except ValueError as error:
        raise ValueError(f"the server sent {_what(body)}: {error}") from error


def _what(body: bytes) -> str:
    html = body[:200].lstrip().lower().startswith((b"<!doctype html", b"<html"))
    return f"{len(body)} bytes{' of HTML' if html else ''}"


def _reply(error: BaseException) -> tuple[int | None, float | None]:
    """HTTP status and seconds of Retry-After, from the forms in which aiohttp, botocore and httpx carry them."""
    for cause in (error, error.__cause__, error.__context__):
        status, headers = getattr(cause, "status", None), getattr(cause, "headers", None)
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            metadata = response.get("ResponseMetadata", {})
            status, headers = metadata.get("HTTPStatusCode"), metadata.get("HTTPHeaders")
        elif response is not None:
            status, headers = getattr(response, "status_code", None), getattr(response, "headers", None)
        if isinstance(status, int):
            found = {key.lower(): value for key, value in (headers or {}).items()}
            return status, _seconds(found.get("retry-after"))
    return None, None


def _seconds(retry_after: str | None) -> float | None:
    """RFC 9110, 10.2.3: a number of seconds, or a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def _sentence(error: BaseException, status: int | None) -> str:
    if isinstance(error, FileNotFoundError) or status in ABSENT:
        return "not found"
    if status is not None:
        return f"status {status}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join(str(error).split()) or type(error).__name__


def _check_protocol(protocol: str, url: str) -> None:
    import fsspec

    if protocol not in fsspec.available_protocols():
        raise UserError(f"`place` (={url}) must begin with http, https, s3, hf or another protocol that fsspec knows")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        advice = f": install duostream[{EXTRAS[protocol]}]" if protocol in EXTRAS else f": {error}"
        raise UserError(f"`place` (={url}) needs a package that is not installed{advice}") from None
