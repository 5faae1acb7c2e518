"""Tars for tests: as img2dataset writes them, and header by header."""

import io
import json
import tarfile
from collections.abc import Iterable

from tests.shards.conftest import png

Pair = tuple[str, bytes]


def tar_bytes(members: Iterable[Pair], format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def sample(number: int, key: str | None = None) -> list[Pair]:
    """As img2dataset writes it."""
    key = key or f"{number:09d}"
    record = {"caption": f"caption {number}", "url": f"http://x/{number}", "key": key, "status": "success", "width": 6}
    return [
        (f"{key}.png", png(number, 9 + number, 7)),
        (f"{key}.json", json.dumps(record).encode()),
        (f"{key}.txt", f"caption {number}".encode()),
    ]


def samples(*numbers: int) -> list[Pair]:
    return [member for number in numbers for member in sample(number)]


def with_checksum(block: bytes) -> bytes:
    blank = block[:148] + b" " * 8 + block[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.USTAR_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(records: dict[str, str]) -> bytes:
    """A pax header; the values are believed, whatever they are."""
    content = b""
    for key, value in records.items():
        text = f" {key}={value}\n".encode()
        length = len(text) + 1
        while len(str(length)) + len(text) != length:
            length += 1
        content += str(length).encode() + text
    return header("pax", len(content), tarfile.XHDTYPE) + padded(content)
