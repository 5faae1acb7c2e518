"""Tars of other tools, indexed where they lie: whole ones, and each kind of damage that other readers pass over."""

import io
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.errors import DamagedSample, UserError
from shards.reader import ShardSet
from shards.stream import ShardStream
from shards.tar_walk import Fault, Member, walk
from shards.verify import verify
from shards.webdataset import write_manifest
from shards.write import build_shards
from tests.shards.conftest import png
from tests.shards.tars import Pair, sample, samples, tar_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tars of img2dataset's form: ten samples and six."""
    (tmp_path / "00000.tar").write_bytes(tar_bytes(samples(*range(10))))
    (tmp_path / "00001.tar").write_bytes(tar_bytes(samples(*range(10, 16))))
    return tmp_path


def captions(folder: Path) -> list[str]:
    shards = ShardSet(folder)
    return [caption for i in range(len(shards)) for caption in shards[i].captions]


def test_reads_like_a_built_set_and_changes_no_byte(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.glob("*.tar")}
    result = write_manifest(folder)
    assert (result.faults, dict(result.notes)) == ((), {})
    assert {path: path.read_bytes() for path in folder.glob("*.tar")} == before
    assert sorted(path.name for path in folder.iterdir()) == [
        *("00000.index.parquet", "00000.tar", "00001.index.parquet", "00001.tar", "manifest.json")
    ]
    shards = ShardSet(folder)
    read = [shards[i] for i in range(16)]
    assert shards.manifest.filtered is not None
    assert shards.manifest.filtered.captions_read == 16
    assert [sample.captions for sample in read] == [(f"caption {i}",) for i in range(16)]
    assert [sample.image for sample in read] == [png(i, 9 + i, 7) for i in range(16)]
    assert read[11].key == "00001-000001"
    assert read[11].metadata == {
        "url": "http://x/11",
        "key": "000000011",
        "status": "success",
        "width": 6,
    }
    assert verify(folder).ok


def test_it_streams(folder: Path) -> None:
    (folder / "00002.tar").write_bytes(tar_bytes([]))
    write_manifest(folder)
    stream: ShardStream[Any] = ShardStream(folder, 4)
    read = [item.sample.captions[0] for batch in stream for item in batch]
    assert sorted(read) == sorted(f"caption {i}" for i in range(16))


def test_a_foreign_set_can_be_written_anew(folder: Path, tmp_path: Path) -> None:
    """Also where two tars use the same keys."""
    (folder / "00001.tar").write_bytes(tar_bytes(samples(*range(4))))
    write_manifest(folder)
    build_shards(ShardSet(folder), tmp_path / "new")
    assert captions(tmp_path / "new") == captions(folder)
    assert verify(tmp_path / "new").ok


def test_two_workers_write_the_same(folder: Path, tmp_path: Path) -> None:
    from shards.executors import Executor

    one = write_manifest(folder)
    indices = [path.read_bytes() for path in sorted(folder.glob("*.parquet"))]
    two = write_manifest(folder, overwrite=True, executor=Executor("local", 2))
    assert two == one
    assert [path.read_bytes() for path in sorted(folder.glob("*.parquet"))] == indices


WHOLE = tar_bytes(samples(*range(10)))
HEADER_OF_4 = WHOLE.index(b"000000004.png")
ALL = list(range(10))


def _with_bytes(offset: int, content: bytes) -> bytes:
    return WHOLE[:offset] + content + WHOLE[offset + len(content) :]


DAMAGES: dict[str, tuple[bytes, list[int], str]] = {
    "corrupt header in mid-shard": (
        _with_bytes(HEADER_OF_4 + 130, b"\xff\xff"),
        [i for i in ALL if i != 4],
        "a damaged header; 1024 bytes are skipped",
    ),
    "zero-filled tail": (
        WHOLE[:HEADER_OF_4] + bytes(30000),
        [0, 1, 2, 3],
        "the last 30000 bytes hold no header, so members may be missing",
    ),
    "zeros in the middle": (
        _with_bytes(HEADER_OF_4, bytes(1024)),
        [i for i in ALL if i != 4],
        "the archive ends, and another begins at byte",
    ),
    "cut on a member boundary": (
        WHOLE[:HEADER_OF_4],
        [0, 1, 2, 3],
        "the file ends without the end of an archive, so members may be missing",
    ),
    "cut inside an image": (WHOLE[: HEADER_OF_4 + 540], [0, 1, 2, 3], "the file ends inside 000000004.png"),
    "cut inside the first sample": (WHOLE[:550], [], "the file ends inside 000000000.png"),
    "two tars joined": (
        WHOLE + tar_bytes(samples(20, 21)),
        [*ALL, 20, 21],
        "the archive ends, and another begins at byte",
    ),
    "noise behind the end": (
        tar_bytes(samples(*ALL)) + b"noise" * 3000,
        ALL,
        "bytes hold no header",
    ),
    "no tar at all": (b"<html>not found</html>" * 100, [], "a damaged header; 2200 bytes are skipped"),
    "empty file": (b"", [], "the file ends without the end of an archive"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_and_costs_only_what_it_hit(kind: str, tmp_path: Path) -> None:
    content, kept, message = DAMAGES[kind]
    (tmp_path / "a.tar").write_bytes(content)
    (tmp_path / "b.tar").write_bytes(tar_bytes(samples(*range(30, 32))))
    result = write_manifest(tmp_path)
    assert captions(tmp_path) == [f"caption {i}" for i in [*kept, 30, 31]]
    assert any(message in fault for fault in result.faults), result.faults
    assert all(fault.startswith("a.tar: at byte ") for fault in result.faults)
    report = result.manifest.filtered
    assert report is not None
    assert report.read == report.kept + sum(report.rejected.values())
    assert verify(tmp_path).ok


def test_a_cut_shard_never_pairs_with_the_next_of_the_same_keys(tmp_path: Path) -> None:
    other = [(name, content.replace(b"caption", b"another")) for name, content in samples(*ALL)]
    (tmp_path / "a.tar").write_bytes(WHOLE[:550])
    (tmp_path / "b.tar").write_bytes(tar_bytes(other))
    write_manifest(tmp_path)
    shards = ShardSet(tmp_path)
    assert len(shards) == 10
    assert shards[0].image == png(0, 9, 7)
    assert shards[0].captions == ("another 0",)


@settings(deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_damage_ever_mixes_pairs(data: st.DataObject) -> None:
    """Bytes cut out, zeroed, overwritten, or put in, anywhere: what is found whole belongs together, nothing raises."""
    content = WHOLE + data.draw(st.sampled_from([b"", OTHER, OTHER[512:]]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        length = data.draw(st.sampled_from([0, 1, 3, 100, 512, 513, 1024, 5000]))
        put = data.draw(st.sampled_from([b"", bytes(length), b"\xa5" * length, content[:length]]))
        content = content[:start] + put + content[start + length :]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.tar").write_bytes(content)
        (folder / "b.tar").write_bytes(tar_bytes(samples(30)))
        write_manifest(folder)
        shards = ShardSet(folder)
        assert shards[len(shards) - 1].captions == ("caption 30",)
        for sample in (shards[i] for i in range(len(shards))):
            caption, number = sample.captions[0], BY_IMAGE.get(sample.image)
            if number is not None and caption in BY_IMAGE.values():
                assert caption == number


OTHER = tar_bytes(
    [(f"{n - 20:09d}{name[9:]}", content) for n in range(20, 24) for name, content in sample(n)]  # The keys of WHOLE.
)
BY_IMAGE = {png(i, 9 + i, 7): f"caption {i}" for i in (*range(10), *range(20, 24))}


def test_halves_on_both_sides_of_damage_are_not_joined(tmp_path: Path) -> None:
    """The first archive ends behind an image; the second begins with that key, but lost its own image."""
    (tmp_path / "a.tar").write_bytes(tar_bytes([A_PNG])[:1024] + bytes(1024) + tar_bytes([("a.txt", b"of another")]))
    (tmp_path / "b.tar").write_bytes(tar_bytes(samples(1)))
    result = write_manifest(tmp_path)
    assert captions(tmp_path) == ["caption 1"]
    assert result.manifest.filtered is not None
    assert result.manifest.filtered.rejected == {"no_caption": 1, "no_image": 1}


def test_bytes_lost_in_a_header_cost_that_sample_alone(tmp_path: Path) -> None:
    """What follows is no longer at whole blocks."""
    (tmp_path / "a.tar").write_bytes(WHOLE[: HEADER_OF_4 + 100] + WHOLE[HEADER_OF_4 + 107 :])
    write_manifest(tmp_path)
    assert captions(tmp_path) == [f"caption {i}" for i in ALL if i != 4]


A_PNG, A_TXT = sample(1, "a")[0], sample(1, "a")[2]
ODD: dict[str, tuple[list[Pair], list[str], dict[str, int], dict[str, int]]] = {
    "dotted keys": (
        [*sample(1, "img.v1"), *sample(2, "img.v2")],
        ["caption 1", "caption 2"],
        {"dotted_keys": 2},
        {},
    ),
    "members apart": (
        [A_PNG, *sample(2), A_TXT],
        ["caption 1", "caption 2"],
        {"apart": 1},
        {},
    ),
    "the same key twice": ([*sample(1, "a"), *sample(2, "a")], ["caption 1", "caption 2"], {"repeated_keys": 1}, {}),
    "a pair and a part": ([A_PNG, *sample(2), A_TXT, A_PNG], ["caption 2", "caption 1"], {}, {"no_caption": 1}),
    "more than one way": (
        [A_PNG, *sample(2), A_PNG, *sample(3), A_TXT],
        ["caption 2", "caption 3"],
        {},
        {"ambiguous": 3},
    ),
    "two images": ([("a.jpg", A_PNG[1]), A_PNG, A_TXT, *sample(2)], ["caption 2"], {}, {"several_images": 1}),
    "no image": ([A_TXT, *sample(2)], ["caption 2"], {}, {"no_image": 1}),
    "no caption": ([A_PNG, ("b.png", A_PNG[1]), ("b.txt", b" \n"), *sample(2)], ["caption 2"], {}, {"no_caption": 2}),
    "caption not UTF-8": ([A_PNG, ("a.txt", b"\xff\xfe"), *sample(2)], ["caption 2"], {}, {"caption_unreadable": 1}),
    "half a surrogate": (
        [A_PNG, ("a.json", b'{"caption": "\\ud800"}'), *sample(2)],
        ["caption 2"],
        {},
        {"caption_unreadable": 1},
    ),
    "image damaged": ([("a.png", b"none"), A_TXT, *sample(2)], ["caption 2"], {}, {"image_unreadable": 1}),
    "json damaged": ([A_PNG, ("a.json", b"{"), A_TXT], ["caption 1"], {"json_unreadable": 1}, {}),
    "json alone": (sample(1)[:2], ["caption 1"], {}, {}),
    "captions in a list": ([A_PNG, ("a.json", b'{"caption": ["x", " y "]}')], ["x", "y"], {}, {}),
    "other members": ([*sample(1, "a"), ("a.npy", b"1"), ("a.cls", b"1")], ["caption 1"], {"other_members": 2}, {}),
    "folders, emoji, capitals": ([("./x/😀.PNG", A_PNG[1]), ("./x/😀.txt", b"smile")], ["smile"], {}, {}),
    "names that lead elsewhere": (
        [("../../a.png", A_PNG[1]), ("../../a.txt", b"up"), ("/etc/b.png", A_PNG[1]), ("/etc/b.txt", b"root")],
        ["up", "root"],
        {},
        {},
    ),
    "very long keys": ([(f"{'k' * 300}.png", A_PNG[1]), (f"{'k' * 300}.txt", b"long")], ["long"], {}, {}),
}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
@pytest.mark.parametrize("kind", ODD)
def test_odd_members_are_handled_and_counted(kind: str, format: int, tmp_path: Path) -> None:
    members, expected, notes, rejected = ODD[kind]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members, format))
    result = write_manifest(tmp_path)
    assert captions(tmp_path) == expected
    assert {name: count for name, count in result.notes.items() if count} == notes
    assert result.faults == ()
    assert result.manifest.filtered is not None
    assert result.manifest.filtered.rejected == rejected
    assert verify(tmp_path).ok
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "a.index.parquet", "manifest.json"}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    content = tar_bytes([*sample(1, "xé"), *sample(2, "xè")]).replace("xé".encode(), b"x\xe9\0")
    content = content.replace("xè".encode(), b"x\xe8\0")
    headers = [offset for offset in range(0, len(content), 512) if content[offset : offset + 1] == b"x"]
    fixed = bytearray(content)
    for offset in headers:  # The name ends at the zero byte: what follows it moves up, and the checksum with it.
        name = bytes(fixed[offset : offset + 100]).replace(b"\0", b"", 1) + b"\0"
        fixed[offset : offset + 100] = name
        fixed[offset + 148 : offset + 156] = b" " * 8
        fixed[offset + 148 : offset + 156] = b"%06o\0 " % sum(fixed[offset : offset + 512])
    (tmp_path / "a.tar").write_bytes(fixed)
    write_manifest(tmp_path)
    shards = ShardSet(tmp_path)
    assert [shards[i].metadata["key"] for i in range(2)] == [r"x\xe9", r"x\xe8"]


@pytest.mark.parametrize(
    "record", ["9" * 5000 + " size=1\n", "20 size=" + "9" * 9 + "\n", "x y=z\n", "5 a\n", "٣ a=b\n"]
)
def test_malicious_pax_records_end_in_bounded_time(record: str, tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    content = record.encode()
    header.type, header.size = tarfile.XHDTYPE, len(content)
    body = content + bytes(-len(content) % 512)
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + body + tar_bytes(samples(1)))
    (tmp_path / "b.tar").write_bytes(tar_bytes(samples(2)))
    write_manifest(tmp_path)
    assert captions(tmp_path)[-1] == "caption 2"


def test_links_are_not_followed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for kind, name in ((tarfile.SYMTYPE, "a.png"), (tarfile.LNKTYPE, "b.png"), (tarfile.DIRTYPE, "c.png")):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            tar.addfile(header)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    (tmp_path / "b.tar").write_bytes(tar_bytes(samples(1)))
    result = write_manifest(tmp_path)
    assert result.notes["not_a_file"] == 2
    assert captions(tmp_path) == ["caption 1"]


def test_captions_from_a_field(folder: Path) -> None:
    write_manifest(folder, "url")
    assert captions(folder) == [f"http://x/{i}" for i in range(16)]
    assert "url" not in ShardSet(folder)[0].metadata
    assert ShardSet(folder)[0].metadata["caption"] == "caption 0"
    assert verify(folder).ok


def test_a_tar_that_changes_later_is_noticed(folder: Path) -> None:
    write_manifest(folder)
    content = bytearray((folder / "00000.tar").read_bytes())
    content[content.index(b"caption 3\0")] ^= 1
    (folder / "00000.tar").write_bytes(content)
    with pytest.raises(DamagedSample, match=r"00000.tar, sample 3: the txt does not match its checksum"):
        ShardSet(folder)[3]
    report = verify(folder)
    assert report.lost == 1
    assert any("000000003.txt: its bytes do not match their crc32" in str(finding) for finding in report.findings)


def test_large_and_pax_sizes_are_read() -> None:
    """Sizes in base 256 and in a pax record; both stand for the same content here."""
    block = bytearray(tar_bytes([("a.txt", b"hello")])[:512])
    block[124:136] = b"\x80" + (5).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert next(iter(walk(bytes(block) + b"hello".ljust(512, b"\0") + bytes(1024)))) == Member("a.txt", 512, 5)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_walk_agrees_with_tarfile_on_sound_archives(format: int) -> None:
    members = [(f"{'d/' * (i % 40)}{'n' * (i % 90)}{i}.txt", bytes(i * 37 % 2000)) for i in range(120)]
    content = tar_bytes(members, format)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [Member(item.name, item.offset_data, item.size) for item in tar]
    found = list(walk(content))
    assert found == expected
    assert not any(isinstance(item, Fault) for item in found)


Arrange = Callable[[Path], object]


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda f: None, r"`folder` .* must hold .tar files$"),
        (lambda f: ((f / "x").mkdir(), (f / "x" / "a.tar").touch()), r"must hold .tar files; there are some in .*x$"),
        (lambda f: (f / "a.tar").touch(), "must hold an image with a caption, but none does: no members"),
        (
            lambda f: ((f / "a.tar").write_bytes(tar_bytes(samples(1))), (f / "manifest.json").write_text("{}")),
            "holds a manifest.json that `shards manifest` did not write",
        ),
        (
            lambda f: ((f / "a.tar").write_bytes(tar_bytes(samples(1))), write_manifest(f)),
            "is indexed: give --overwrite to do it again",
        ),
    ],
)
def test_refusals(arrange: Arrange, message: str, tmp_path: Path) -> None:
    arrange(tmp_path)
    with pytest.raises(UserError, match=message):
        write_manifest(tmp_path)
