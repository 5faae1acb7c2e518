"""Tars made by mistake or malice: nothing of them is followed, swells or is believed; losses are counted."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from shards import webdataset
from shards.errors import DamagedSample
from shards.manifest import FilterReport, index_bytes, read_index
from shards.reader import ShardSet
from shards.soundness import CAPTION_BYTES, MEMBER_BYTES
from shards.stream import ShardStream
from shards.tar_walk import EXTENSION_BYTES
from shards.verify import verify
from shards.webdataset import ManifestResult, write_manifest
from tests.shards.bounded import run_bounded
from tests.shards.conftest import png
from tests.shards.hostile import BOMBS
from tests.shards.tars import Pair, header, padded, pax, sample, samples, tar_bytes, with_checksum

END = bytes(1024)
PNG = png(1)
DEEP = b'{"caption": "deep", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def indexed(folder: Path, content: bytes) -> tuple[ManifestResult, list[str]]:
    """What the manifest says, and the captions; a second tar has the sound sample 30."""
    (folder / "a.tar").write_bytes(content)
    (folder / "b.tar").write_bytes(tar_bytes(samples(30)))
    result = write_manifest(folder)
    shards = ShardSet(folder)
    captions = [caption for i in range(len(shards)) for caption in shards[i].captions]
    assert captions.pop() == "caption 30"
    report = report_of(result)
    assert report.read == report.kept + sum(report.rejected.values())
    assert verify(folder).ok
    return result, captions


def report_of(result: ManifestResult) -> FilterReport:
    assert result.manifest.filtered is not None
    return result.manifest.filtered


@pytest.mark.parametrize(
    ("members", "captions", "rejected"),
    [
        ([("a.jpg", PNG), ("a.jpg", png(2)), ("a.txt", b"whose?")], [], {"ambiguous": 2}),
        ([("a.png", PNG), ("a.txt", b"one"), ("a.txt", b"two")], [], {"ambiguous": 2}),
        ([("a.png", PNG), ("a.txt", b"1"), ("A.png", png(2)), ("A.txt", b"2")], ["1", "2"], {}),
        ([("a b/../c.png", PNG), ("a b/../c.txt", b"spaces")], ["spaces"], {}),
        ([("/etc/passwd.png", PNG), ("/etc/passwd.txt", b"root")], ["root"], {}),
        ([("a.png", b""), ("a.txt", b"empty")], [], {"image_unreadable": 1}),
        ([("a.jpg", b"<html>"), ("a.txt", b"not found")], [], {"image_unreadable": 1}),
        ([("a.png", BOMBS["png"]), ("a.txt", b"bomb")], [], {"image_too_large": 1}),
        ([("a.jpg", BOMBS["jpeg"]), ("a.txt", b"bomb")], [], {"image_too_large": 1}),
        ([("a.png", PNG), ("a.txt", b"x" * (CAPTION_BYTES + 1))], [], {"caption_too_long": 1}),
        ([("a.png", PNG), ("a.txt", b"x" * 10_000_000)], [], {"caption_too_long": 1}),
        ([("a.png", PNG), ("a.txt", b"a\0b")], [], {"caption_unreadable": 1}),
        ([("a.png", PNG), ("a.txt", b"a\x01b\x7f")], ["a\x01b\x7f"], {}),
        ([("a.png", PNG), ("a.json", json.dumps({"caption": "y" * 5_000_000}).encode())], [], {"no_caption": 1}),
        ([("a.png", PNG), ("a.json", DEEP)], [], {"no_caption": 1}),
        ([("a.png", PNG), ("a.json", DEEP), ("a.txt", b"kept")], ["kept"], {}),
    ],
    ids=lambda value: "" if isinstance(value, dict) else None,
)
def test_members(members: list[Pair], captions: list[str], rejected: dict[str, int], tmp_path: Path) -> None:
    result, found = indexed(tmp_path, tar_bytes(members))
    assert (found, report_of(result).rejected) == (captions, rejected)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("a.tar", "a.index.parquet", "b.tar", "b.index.parquet", "manifest.json")
    }


SPECIAL = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


@pytest.mark.parametrize("kind", SPECIAL)
def test_links_and_devices_stand_for_nothing(kind: bytes, tmp_path: Path) -> None:
    """The image of sample `a` is a link, a device or a pipe: the sample is left out, and nothing is opened."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        special = tarfile.TarInfo("a.png")
        special.type, special.linkname = kind, "/proc/self/mem"
        tar.addfile(special)
        text = tarfile.TarInfo("a.txt")
        text.size = 4
        tar.addfile(text, io.BytesIO(b"text"))
    result, found = indexed(tmp_path, buffer.getvalue())
    assert (found, report_of(result).rejected) == ([], {"no_image": 1})
    assert (result.notes["not_a_file"], result.faults) == (1, ())


def test_folders_are_passed_over(tmp_path: Path) -> None:
    result, found = indexed(tmp_path, header("a.png/", 0, tarfile.DIRTYPE) + tar_bytes(sample(1)))
    assert (found, dict(result.notes), result.faults) == (["caption 1"], {}, ())


def test_sparse_files_are_named_and_what_follows_is_read(tmp_path: Path) -> None:
    """GNU's old form, whose map goes on behind the header, and the one of pax."""
    old = bytearray(header("a.png", 512, b"S"))
    old[482] = 1
    more = bytes(504) + b"\1" + bytes(7), bytes(512)
    sparse = with_checksum(bytes(old)) + b"".join(more) + bytes(512) + header("a.txt", 3) + padded(b"old")
    new = pax({"GNU.sparse.major": "1", "GNU.sparse.name": "b.png"}) + header("GNUSparseFile.0/b.png", 512)
    result, found = indexed(tmp_path, sparse + new + bytes(512) + tar_bytes(sample(1)))
    assert (found, result.faults) == (["caption 1"], ())
    assert result.notes["not_a_file"] == 2
    assert report_of(result).rejected == {"no_image": 1}


def text_of(key: str, caption: bytes) -> bytes:
    return header(f"{key}.png", len(PNG)) + padded(PNG) + header(f"{key}.txt", len(caption)) + padded(caption)


@pytest.mark.parametrize("size", ["99999999999", "1" + "0" * 18, "600000"])
@pytest.mark.parametrize("where", ["pax", "header"])
def test_a_size_beyond_the_file_costs_that_member(size: str, where: str, tmp_path: Path) -> None:
    """Other readers stop there and lose the rest without a word."""
    plain = bytearray(header("a.png", 512))
    plain[124:136] = b"\x80" + int(size).to_bytes(11, "big")
    lie = pax({"size": size}) + header("a.png", 512) if where == "pax" else with_checksum(bytes(plain))
    result, found = indexed(tmp_path, text_of("0", b"before") + lie + padded(PNG) + text_of("1", b"after") + END)
    assert found == ["before", "after"]
    assert any("a.png claims more bytes than the file has" in fault for fault in result.faults)


def test_a_size_too_small_is_damage_behind_which_nothing_is_joined(tmp_path: Path) -> None:
    big = png(3, 200, 200) + bytes(4096)
    lie = pax({"size": "10"}) + header("a.png", len(big)) + padded(big) + header("a.txt", 4) + padded(b"text")
    result, found = indexed(tmp_path, lie + text_of("1", b"after") + END)
    assert found == ["after"]
    assert any("a damaged header" in fault for fault in result.faults)


def test_a_pax_size_is_that_of_the_file_and_of_no_header_between(tmp_path: Path) -> None:
    name = b"k" * 150 + b".png\0"
    long_name = header("././@LongLink", len(name), b"L") + padded(name)
    image = pax({"size": str(len(PNG))}) + long_name + header("short", 0) + padded(PNG)
    text = (
        header("././@LongLink", len(name), b"L") + padded(name[:-4] + b"txt\0") + header("short", 4) + padded(b"pair")
    )
    result, found = indexed(tmp_path, image + text + END)
    assert (found, result.faults) == (["pair"], ())


@pytest.mark.parametrize("kind", [b"L", tarfile.XHDTYPE])
def test_a_giant_name_costs_its_member_and_is_not_read(kind: bytes, tmp_path: Path) -> None:
    """Under its short name, the member could be taken for another's."""
    giant = header("giant", EXTENSION_BYTES + 1, kind) + padded(b"n" * (EXTENSION_BYTES + 1))
    content = header("1.txt", 5) + padded(b"other") + giant + header("1.png", len(PNG)) + padded(PNG)
    result, found = indexed(tmp_path, content + text_of("2", b"after") + END)
    assert found == ["after"]
    assert any(f"a header of more than {EXTENSION_BYTES} bytes; its file is left out" in f for f in result.faults)


def test_too_many_members_are_cut_off_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MOST_MEMBERS", 9)
    result, found = indexed(tmp_path, tar_bytes(samples(*range(10))))
    assert found == ["caption 0", "caption 1", "caption 2"]
    assert [fault.partition(": ")[2].partition(": ")[2] for fault in result.faults] == [
        "more than 9 members; the rest is left out"
    ]


def test_faults_without_end_are_a_hundred_sentences(tmp_path: Path) -> None:
    result, found = indexed(tmp_path, (tar_bytes([])[:512] + text_of("k", b"again")) * 150 + END)
    assert len(result.faults) == webdataset.MOST_FAULTS + 1
    assert result.faults[-1] == "a.tar: and 50 faults more"
    assert found == ["again"] * 150


GIANTS = """
import sys
from pathlib import Path
from shards.reader import ShardSet
from shards.webdataset import write_manifest

write_manifest(Path(sys.argv[1]) / "warm")
bound((600 << 20) + (64 << 20))
result = write_manifest(Path(sys.argv[1]) / "giants")
print(result.manifest.filtered.rejected, dict(result.notes))
"""


def test_giant_members_are_not_read_into_memory(tmp_path: Path) -> None:
    """Members of 200 MiB under a limit of 64 MiB; the tar itself, a hole of 600 MiB, is mapped and not read."""
    giant = 200 << 20
    for name in ("warm", "giants"):
        (tmp_path / name).mkdir()
    (tmp_path / "warm" / "a.tar").write_bytes(tar_bytes(samples(1)))
    with (tmp_path / "giants" / "a.tar").open("wb") as file:
        for key, extension in (("a", "png"), ("b", "txt"), ("c", "json")):
            if extension != "png":
                file.write(header(f"{key}.png", len(PNG)) + padded(PNG))
            file.write(header(f"{key}.{extension}", giant))
            file.seek(giant, io.SEEK_CUR)
            if extension == "png":
                file.write(header(f"{key}.txt", 4) + padded(b"text"))
        file.write(tar_bytes(samples(1)))
    printed = run_bounded(GIANTS, str(tmp_path))
    assert printed.strip() == ("{'image_too_large': 1, 'caption_too_long': 1, 'no_caption': 1} {'json_unreadable': 1}")


def test_an_index_that_names_a_giant_is_damage_when_it_is_streamed(tmp_path: Path) -> None:
    """As an older version, which had no limits, may have written it: the ledger has the reason, nothing is read."""
    (tmp_path / "a.tar").write_bytes(tar_bytes(samples(*range(40))))
    result = write_manifest(tmp_path)
    index = tmp_path / "a.index.parquet"
    table = read_index(index)
    rows, proof = table.to_pylist(), {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    rows[7]["txt_size"] = 10_000_000
    index.write_bytes(index_bytes(rows, {"tar_sha256": proof["tar_sha256"]}))
    import hashlib

    entry = result.manifest.shards[0].model_copy(
        update={"index_sha256": hashlib.sha256(index.read_bytes()).hexdigest()}
    )
    manifest = result.manifest.model_copy(update={"shards": (entry,)})
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    with pytest.raises(DamagedSample, match=rf"sample 7: the txt has 10000000 bytes, more than {MEMBER_BYTES['txt']}$"):
        ShardSet(tmp_path)[7]
    stream: ShardStream[list[object]] = ShardStream(tmp_path, 8, damage_budget=0.1)
    assert sum(len(batch) for batch in stream) == 40
    assert [(entry.ordinal, entry.reason.partition(": ")[2]) for entry in stream.ledger] == [
        (7, f"the txt has 10000000 bytes, more than {MEMBER_BYTES['txt']}")
    ]
