"""Every kind of damage is named with the exact loss; what the reader loses is what verify says."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.errors import DamagedSample, UserError
from shards.manifest import read_index
from shards.reader import ShardSet
from shards.verify import verify

SHARD = "shard-000001.tar"


def lost_by_reader(folder: Path) -> set[int]:
    shards, lost = ShardSet(folder), set()
    for index in range(len(shards)):
        try:
            shards[index]
        except DamagedSample:
            lost.add(index)
    return lost


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x40
    path.write_bytes(content)


def offset_of(folder: Path, column: str, ordinal: int) -> int:
    return read_index(folder / "shard-000001.index.parquet")[column][ordinal].as_py()


def test_sound(shard_folder: Path) -> None:
    report = verify(shard_folder)
    assert report.ok
    assert (report.shards, report.samples, report.lost) == (7, 50, 0)
    assert report.bytes == sum(path.stat().st_size for path in shard_folder.glob("*.tar"))
    json.dumps(report.to_json())


Damage = Callable[[Path], None]
DAMAGES: dict[str, tuple[Damage, set[int], str]] = {
    "missing shard": (
        lambda d: (d / SHARD).unlink(),
        set(range(8, 16)),
        f"{SHARD}: the file is missing; lost: samples 0 to 7",
    ),
    "missing index": (
        lambda d: (d / "shard-000001.index.parquet").unlink(),
        set(range(8, 16)),
        "its index shard-000001.index.parquet is missing; the tar is sound",
    ),
    "flipped image byte": (
        lambda d: flip(d / SHARD, offset_of(d, "image_offset", 3) + 40),
        {11},
        "key-0011.png: its bytes do not match their crc32; lost: sample 3",
    ),
    "flipped record byte": (
        lambda d: flip(d / SHARD, offset_of(d, "json_offset", 0) + 5),
        {8},
        "key-0008.json: its bytes do not match their crc32; lost: sample 0",
    ),
    "flipped header byte": (
        lambda d: flip(d / SHARD, offset_of(d, "image_offset", 5) - 512),
        set(),
        "key-0013.png: its tar header does not match its checksum, so readers without the index lose samples 5 to 7",
    ),
    "flipped padding": (
        lambda d: flip(d / SHARD, offset_of(d, "json_offset", 5) - 513),
        set(),
        f"{SHARD}: its bytes do not match their sha256; no sample lost",
    ),
    "truncated": (
        lambda d: (d / SHARD).write_bytes((d / SHARD).read_bytes()[: offset_of(d, "json_offset", 6) + 3]),
        {14, 15},
        "key-0014.json: only 3 of",
    ),
    "emptied": (lambda d: (d / SHARD).write_bytes(b""), set(range(8, 16)), "(0 bytes instead of"),
    "zeroed tail": (
        lambda d: (d / SHARD).write_bytes((d / SHARD).read_bytes()[:-6000] + bytes(6000)),
        {14, 15},
        "readers without the index lose samples",
    ),
    "another archive appended": (
        lambda d: (d / SHARD).write_bytes((d / SHARD).read_bytes() * 2),
        set(),
        "it does not end with an empty kilobyte",
    ),
    "extra shard": (
        lambda d: (d / "shard-000099.tar").write_bytes(b""),
        set(),
        "shard-000099.tar: the manifest does not name it",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_with_its_loss(kind: str, shard_folder: Path) -> None:
    damage, lost, message = DAMAGES[kind]
    damage(shard_folder)
    report = verify(shard_folder)
    assert not report.ok
    assert any(message in str(finding) for finding in report.findings), [str(f) for f in report.findings]
    named = {(finding.shard, ordinal) for finding in report.findings for ordinal in finding.lost}
    assert named == {(SHARD, index - 8) for index in lost}
    assert report.lost == len(lost)
    assert lost_by_reader(shard_folder) == lost


def test_flipped_index_byte(shard_folder: Path) -> None:
    """Reading it may or may not work; verify does not trust it."""
    flip(shard_folder / "shard-000001.index.parquet", 100)
    report = verify(shard_folder)
    assert "does not match its sha256; the tar is sound" in str(report.findings[0])
    assert report.lost == 8


def test_contents_are_checked_even_where_digests_match(shard_folder: Path) -> None:
    """A set whose writer was wrong: the image is a text, and index and manifest agree with the bytes."""
    from shards import manifest as m

    tar = shard_folder / "shard-000006.tar"
    index = shard_folder / "shard-000006.index.parquet"
    rows = read_index(index).to_pylist()
    rows[0]["width"] = 99
    index.write_bytes(m.index_bytes(rows, {}))
    entries = list(m.read_manifest(shard_folder).shards)
    import hashlib

    entries[6] = entries[6].model_copy(update={"index_sha256": hashlib.sha256(index.read_bytes()).hexdigest()})
    changed = m.read_manifest(shard_folder).model_copy(update={"shards": tuple(entries)})
    (shard_folder / "manifest.json").write_bytes(m.to_json(changed))
    assert [str(f) for f in verify(shard_folder).findings] == [
        f"{tar.name}: key-0048.png: the image is 6x4, the index says 99x4; lost: sample 0"
    ]


def test_stock_tarfile_agrees(shard_folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO((shard_folder / SHARD).read_bytes())) as tar:
        names = tar.getnames()
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in tar} == {(0, 0, 0, 0o644, "")}
    assert names[:3] == ["key-0008.png", "key-0008.json", "key-0008.txt"]
    assert len(names) == 24


def test_not_a_shard_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest.json: run `shards build`, or finish it with --resume"):
        verify(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        verify(tmp_path / "none")
    (tmp_path / "manifest.json").write_text('{"shards": []}')
    with pytest.raises(UserError, match=r"has a damaged manifest.json: plan field required"):
        verify(tmp_path)
