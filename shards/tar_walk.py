"""Finds the members of a tar of anybody's making, past damage that makes other readers stop early.

    bytes -> header after header -> members (name, offset, size) and faults (what is wrong, where, how much is skipped)

USTAR, GNU (long names, large sizes) and pax headers are read. Unlike `tarfile`, a header that does not match its
checksum, one that claims more than the file holds, and the end of an archive with something behind it do not end the
walk: it goes on at the next sound header. Links, devices and sparse files are named and not followed.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
PADDING = 20 * BLOCK
"""What tar pads archives to; more zeros than that at the end are missing data."""

EXTENSION_BYTES = 1 << 20
"""A longer name or pax header is not read, and neither is the member that it describes."""

UNREADABLE = "backslashreplace"
"""Names that are not UTF-8 stay different from each other, and can be written down."""

Buffer = bytes | mmap.mmap
_MAGIC, _MAGIC_AT = b"ustar", 257
_FILE, _LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = {"0", "\0", "7"}, "L", "K", "x", "g"
_FOLDER, _SPARSE = "5", "S"


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in the tar: its content is bytes offset to offset + size."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong, from byte `offset` on.

    Attributes:
        kind: damaged_header, joined_archives, zero_tail, cut, no_end, or not_a_file, which is no damage.
    """

    kind: str
    offset: int
    detail: str

    def __str__(self) -> str:
        return f"at byte {self.offset}: {self.detail}"


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    size: int
    kind: str


@dataclass(slots=True)
class _Extension:
    """What extended headers say of the member behind them."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False
    unread: bool = False

    def read(self, kind: str, content: bytes) -> None:
        if kind == _LONG_NAME:
            self.name = content.rstrip(b"\0").decode("utf-8", UNREADABLE)
        elif kind == _PAX:
            values = _pax(content)
            self.name = values.get("path", self.name)
            self.size = int(values["size"]) if _is_number(values.get("size", "")) else None
            self.sparse = any(key.startswith("GNU.sparse.") for key in values)


def walk(view: Buffer) -> Iterator[Member | Fault]:
    """Members and faults in the order of the file."""
    offset, extension = 0, _Extension()
    size = len(view)
    while offset + BLOCK <= size:
        block = bytes(view[offset : offset + BLOCK])
        if block == bytes(BLOCK):
            following = _next_header(view, offset)
            if following is None:
                yield from _end(offset, size)
                return
            yield Fault("joined_archives", offset, f"the archive ends, and another begins at byte {following}")
            offset, extension = following, _Extension()
            continue
        header = parse_header(block)
        extends = header is not None and header.kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL)
        length = 0 if header is None else header.size if extends or extension.size is None else extension.size
        content = offset + BLOCK + (_sparse_map(view, offset) if header and header.kind == _SPARSE else 0)
        if header is None or content + length > size:
            following = _next_header(view, offset)
            name = None if header is None else extension.name or header.name
            yield _bad_header(name, offset, following, size)
            if following is None:
                return
            offset, extension = following, _Extension()
            continue
        if not extends:
            if header.kind != _FOLDER:
                yield _found(header, extension, Member(extension.name or header.name, content, length), offset)
            extension = _Extension()
        elif length > EXTENSION_BYTES:
            extension.unread = True
        else:
            extension.read(header.kind, bytes(view[content : content + length]))
        offset = content + length + -length % BLOCK
    yield Fault("no_end", offset, "the file ends without the end of an archive, so members may be missing")


def _found(header: _Header, extension: _Extension, member: Member, offset: int) -> Member | Fault:
    if extension.unread:
        return Fault("damaged_header", offset, f"a header of more than {EXTENSION_BYTES} bytes; its file is left out")
    if header.kind == _SPARSE or extension.sparse:
        return Fault("not_a_file", offset, f"{member.name} is a sparse file, which is not read")
    if header.kind in _FILE:
        return member
    return Fault("not_a_file", offset, f"{member.name} is a link or a device, which is not followed")


def _bad_header(name: str | None, offset: int, following: int | None, size: int) -> Fault:
    """`name` is that of a member that claims more bytes than are left, None where the header cannot be read."""
    if name is not None and following is None:
        return Fault("cut", offset, f"the file ends inside {name}")
    what = "a damaged header" if name is None else f"{name} claims more bytes than the file has"
    skipped = (size if following is None else following) - offset
    return Fault("damaged_header", offset, f"{what}; {skipped} bytes are skipped")


def _sparse_map(view: Buffer, offset: int) -> int:
    """Bytes that GNU's map of a sparse file takes behind its header; each block says whether another follows."""
    more, blocks = view[offset + 482 : offset + 483], 0
    while more not in (b"", b"\0"):
        blocks += 1
        at = offset + blocks * BLOCK
        more = view[at + 504 : at + 505]
    return blocks * BLOCK


def parse_header(block: bytes) -> _Header | None:
    """Name, size and type of a sound header; None where the block is none."""
    try:
        stored = int(block[148:156].rstrip(b"\0 ") or b"x", 8)
    except ValueError:
        return None
    if len(block) < BLOCK or stored != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        return None
    size = _number(block[124:136])
    if size is None:
        return None
    prefix = block[345:500] if block[257:263] == _MAGIC + b"\0" else b""
    parts = [part.split(b"\0", 1)[0].decode("utf-8", UNREADABLE) for part in (prefix, block[:100])]
    return _Header("/".join(part for part in parts if part), size, chr(block[156]))


def _number(field: bytes) -> int | None:
    """Octal text, or GNU's base 256 for sizes from 8 GiB."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        return None


def _pax(content: bytes) -> dict[str, str]:
    """The records "LENGTH KEY=VALUE\\n"; what cannot be read ends them."""
    values: dict[str, str] = {}
    while content:
        length, _, _ = content.partition(b" ")
        if not _is_number(length.decode("ascii", UNREADABLE)) or not 0 < int(length) <= len(content):
            break
        record, content = content[: int(length)], content[int(length) :]
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        values[key.decode("utf-8", UNREADABLE)] = value.decode("utf-8", UNREADABLE)
    return values


def _is_number(text: str) -> bool:
    """Of a length that a file can have: longer ones are damage or malice."""
    return len(text) < 20 and text.isascii() and text.isdigit()


def _next_header(view: Buffer, offset: int) -> int | None:
    """Where the next sound header behind `offset` begins, at any byte: bytes may have been lost before it."""
    found = view.find(_MAGIC, offset + 1 + _MAGIC_AT)
    while found >= 0:
        start = found - _MAGIC_AT
        if parse_header(bytes(view[start : start + BLOCK])):
            return start
        found = view.find(_MAGIC, found + 1)
    # Archives from before USTAR have no magic, but are made of whole blocks.
    for start in range(offset + BLOCK, len(view) - BLOCK + 1, BLOCK):
        if view[start] and parse_header(bytes(view[start : start + BLOCK])):
            return start
    return None


def _end(offset: int, size: int) -> Iterator[Fault]:
    rest = size - offset
    if rest < 2 * BLOCK:
        yield Fault("no_end", offset, "the file ends without the end of an archive, so members may be missing")
    elif rest > PADDING + BLOCK:
        yield Fault("zero_tail", offset, f"the last {rest} bytes hold no header, so members may be missing")
