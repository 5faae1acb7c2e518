"""Proves a shard set without the code that wrote it: digests, a walk over the tar headers, checksums, image headers.

Names every damaged shard and member, and which samples are lost to a reader.
"""

import hashlib
import json
import mmap
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.console import Progress
from shards.decode import image_size
from shards.errors import DamagedSample
from shards.foreign import UnsoundCaption, foreign_captions
from shards.manifest import REJECTED, Foreign, Manifest, ShardEntry, read_index, read_manifest
from shards.sample import ARRAYS, array_fault, array_from_bytes

BLOCK = 512


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        member: Name in the tar, empty where the whole shard or its index is meant.
        lost: Ordinals of the samples that cannot be read because of it.
    """

    shard: str
    member: str
    reason: str
    lost: tuple[int, ...] = ()

    def __str__(self) -> str:
        place = f"{self.shard}: {self.member}" if self.member else self.shard
        return f"{place}: {self.reason}; {_loss(self.lost)}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was read and what was found."""

    folder: str
    shards: int
    samples: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def lost(self) -> int:
        """Samples that cannot be read, each counted once."""
        return len({(finding.shard, ordinal) for finding in self.findings for ordinal in finding.lost})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok, "lost": self.lost}


def verify(folder: Path, progress: Progress | None = None) -> VerifyReport:
    """Re-reads every byte of a finished build.

    Raises:
        UserError: the folder holds no finished build.
    """
    manifest = read_manifest(folder)
    findings: list[Finding] = []
    for entry in manifest.shards:
        findings += _check_shard(folder, entry, manifest.foreign)
        if progress:
            progress.advance(entry.samples)
    known = {entry.name for entry in manifest.shards}
    extra = sorted(path.name for path in folder.glob("*.tar") if path.name not in known)
    findings += [Finding(name, "", "the manifest does not name it") for name in extra]
    findings += _check_rejections(folder, manifest)
    return VerifyReport(str(folder), len(manifest.shards), manifest.samples, manifest.bytes, tuple(findings))


def _check_rejections(folder: Path, manifest: Manifest) -> list[Finding]:
    expected = manifest.filtered.rejections_sha256 if manifest.filtered else ""
    if not expected:
        return []
    path = folder / REJECTED
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == expected:
        return []
    state = "does not match its sha256" if path.is_file() else "is missing"
    return [Finding(REJECTED, "", f"the list of rejected samples {state}")]


def _check_shard(folder: Path, entry: ShardEntry, foreign: Foreign | None) -> list[Finding]:
    everything = tuple(range(entry.samples))
    index = folder / entry.index_name
    tar = folder / entry.name
    if not tar.is_file():
        return [Finding(entry.name, "", "the file is missing", everything)]
    with tar.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    fault = _index_fault(index, entry)
    if fault:
        again = "shards manifest --overwrite" if foreign else "shards build --resume"
        state = f"is sound: `{again}` restores the index" if whole else "does not match its sha256 either"
        return [Finding(entry.name, "", f"{fault}; the tar {state}", everything)]
    return _check_contents(tar, entry, _rows(index), whole, foreign)


def _index_fault(index: Path, entry: ShardEntry) -> str:
    if not index.is_file():
        return f"its index {index.name} is missing"
    matches = hashlib.sha256(index.read_bytes()).hexdigest() == entry.index_sha256
    return "" if matches else f"its index {index.name} does not match its sha256"


def _check_contents(
    tar: Path, entry: ShardEntry, rows: list[dict[str, Any]], whole: bool, foreign: Foreign | None
) -> list[Finding]:
    """Also done where the digests match: they prove that nothing changed, not that it was right."""
    findings = []
    if not whole:
        findings.append(Finding(entry.name, "", f"its bytes do not match their sha256{_size_note(tar, entry)}"))
    with tar.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if tar.stat().st_size else b""
        for ordinal, row in enumerate(rows):
            findings += _check_sample(entry.name, ordinal, row, view, foreign)
        if not foreign:  # What is wrong with the headers of others, `shards manifest` said.
            findings += _check_walk(entry.name, rows, view)
        if isinstance(view, mmap.mmap):
            view.close()
    return findings


def _check_sample(
    shard: str, ordinal: int, row: dict[str, Any], view: "mmap.mmap | bytes", foreign: Foreign | None
) -> Iterator[Finding]:
    contents: dict[str, bytes] = {}
    for field, extension in _indexed(row).items():
        offset, size = row[f"{field}_offset"], row[f"{field}_size"]
        content = bytes(view[offset : offset + size])
        reason = ""
        if len(content) < size:
            reason = f"only {len(content)} of {size} bytes are there"
        elif zlib.crc32(content) != row[f"{field}_crc32"]:
            reason = "its bytes do not match their crc32"
        else:
            contents[field] = content
            reason = _wrong_content(field, contents, row, foreign)
        if reason:
            yield Finding(shard, f"{row['key']}.{extension}", reason, (ordinal,))


def _indexed(row: dict[str, Any]) -> dict[str, str]:
    """The members of one sample that the index has the place of -> what follows the key in their names, in order."""
    extensions = {"image": row["extension"], "json": "json", **{name: f"{name}.npy" for name in ARRAYS}, "txt": "txt"}
    return {field: name for field, name in extensions.items() if row.get(f"{field}_offset") is not None}


def _wrong_content(field: str, contents: dict[str, bytes], row: dict[str, Any], foreign: Foreign | None) -> str:
    """What is wrong with the member `field`, whose checksum is right; `contents` are the members so far."""
    if field == "image":
        return _wrong_image(contents["image"], row)
    if foreign:
        # The captions may come from either member: looked at with the last of them.
        last = "txt" if row.get("txt_offset") is not None else "json"
        return _wrong_foreign(contents, row, foreign) if field == last else ""
    return _wrong_record(contents["json"], row) if field == "json" else _wrong_array(contents[field], contents)


def _wrong_array(content: bytes, contents: dict[str, bytes]) -> str:
    try:
        array = array_from_bytes(content)
        record = json.loads(contents["json"]) if "json" in contents else {"regions": array}
        fault = array_fault(array, len(record["regions"]))
    except (ValueError, KeyError, TypeError) as error:
        return str(error)
    return fault and f"the array {fault}"


def _wrong_foreign(contents: dict[str, bytes], row: dict[str, Any], foreign: Foreign) -> str:
    try:
        captions = foreign_captions(contents.get("json"), contents.get("txt"), foreign.caption_field)
    except UnsoundCaption as error:
        return f"it cannot be a caption: {error}"
    same = [len(caption.split()) for caption in captions] == row["caption_words"]
    return "" if same else "its captions are not those of the index"


def _wrong_image(content: bytes, row: dict[str, Any]) -> str:
    try:
        width, height = image_size(content)
    except DamagedSample as error:
        return str(error)
    if (width, height) != (row["width"], row["height"]):
        return f"the image is {width}x{height}, the index says {row['width']}x{row['height']}"
    return ""


def _wrong_record(content: bytes, row: dict[str, Any]) -> str:
    try:
        words = [len(caption.split()) for caption in json.loads(content)["captions"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "it is no record"
    return "" if words == row["caption_words"] else "its captions are not those of the index"


def _check_walk(shard: str, rows: list[dict[str, Any]], view: "mmap.mmap | bytes") -> Iterator[Finding]:
    """Follows the headers as a reader without the index does, and compares with what the index expects."""
    expected = [
        (ordinal, f"{row['key']}.{extension}")
        for ordinal, row in enumerate(rows)
        for extension in (*_indexed(row).values(), "txt")
    ]
    offset = 0
    for ordinal, name in expected:
        header = bytes(view[offset : offset + BLOCK])
        found, size, reason = _header(header)
        if reason or found != name:
            reason = reason or f"a member named {found} stands in its place"
            yield Finding(
                shard, name, f"{reason}, so readers without the index lose samples {ordinal} to {len(rows) - 1}"
            )
            return
        offset += BLOCK + size + -size % BLOCK
    if view[offset:] != bytes(2 * BLOCK):
        yield Finding(shard, "", f"it does not end with an empty kilobyte at byte {offset}")


def _header(header: bytes) -> tuple[str, int, str]:
    """Name and size from one tar header, and what is wrong with it."""
    if len(header) < BLOCK:
        return "", 0, "the tar ends before its header"
    try:
        stored, size = int(header[148:156].rstrip(b"\0 "), 8), int(header[124:136].rstrip(b"\0 "), 8)
        name = header[:100].rstrip(b"\0").decode()
    except ValueError:
        return "", 0, "its tar header is damaged"
    if stored != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        return "", 0, "its tar header does not match its checksum"
    return name, size, ""


def _rows(index: Path) -> list[dict[str, Any]]:
    try:
        return read_index(index).to_pylist()
    except pa.ArrowException as error:
        raise AssertionError(f"{index} matches its digest but cannot be read") from error


def _size_note(tar: Path, entry: ShardEntry) -> str:
    size = tar.stat().st_size
    return f" ({size} bytes instead of {entry.bytes})" if size != entry.bytes else ""


def _loss(lost: tuple[int, ...]) -> str:
    if not lost:
        return "no sample lost by itself"
    span = f"sample {lost[0]}" if len(lost) == 1 else f"samples {lost[0]} to {lost[-1]}"
    return f"lost: {span}"
