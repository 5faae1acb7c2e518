"""Conceptual Captions: rows with a local image, and the count of those without."""

import json
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.sources.conceptual_captions import ConceptualCaptionsSource

TABLE = "a\thttp://x/a\nb\thttp://x/b\nsame as a\thttp://y/a\nunknown\thttp://x/u\nlost\thttp://x/l\n"
FILES = {"http://x/a": "0.png", "http://x/b": "more/1.png", "http://y/a": "0.png", "http://x/l": "lost.png"}


def make(
    folder: Path, images: Path, table: str = TABLE, files: str = json.dumps(FILES), suffix: str = ".json"
) -> ConceptualCaptionsSource:
    (folder / "cc.tsv").write_text(table)
    (folder / f"map{suffix}").write_text(files)
    return ConceptualCaptionsSource(folder / "cc.tsv", images, folder / f"map{suffix}")


def test_rows_without_a_local_image_are_counted(image_files: Path, tmp_path: Path) -> None:
    source = make(tmp_path, image_files)
    assert source.skipped == 2
    assert [source[i].captions for i in range(len(source))] == [("a", "same as a"), ("b",)]
    assert source[0].metadata == {"url": "http://x/a", "file": "0.png"}
    assert source[1].image == (image_files / "more/1.png").read_bytes()


def test_both_maps_and_both_orders_of_columns_agree(image_files: Path, tmp_path: Path) -> None:
    lines = "".join(f"{url}\t{file}\n" for url, file in FILES.items())
    swapped = "".join("\t".join(reversed(line.split("\t"))) + "\n" for line in TABLE.splitlines())
    expected = make(tmp_path, image_files).fingerprint()
    assert make(tmp_path, image_files, files=lines, suffix=".tsv").fingerprint() == expected
    assert make(tmp_path, image_files, table=swapped).fingerprint() == expected


@pytest.mark.parametrize(
    ("table", "files", "suffix", "message"),
    [
        (TABLE, "{}", ".json", "must lead to an image below `images` for some of 5 rows"),
        (TABLE, '["0.png"]', ".json", "has an unknown form; this needs lines of URL<TAB>FILE or JSON {URL: FILE}"),
        (TABLE, "http://x/a 0.png\n", ".tsv", "has a line (1) of another form; this needs lines of URL<TAB>FILE"),
        (TABLE, "http://x/a\t0.png\nhttp://x/a\t1.png\n", ".tsv", "must give an address one file, but line 2 gives"),
        (TABLE, "http://x/a\t../0.png\n", ".tsv", "image `../0.png` must be a path below `images`"),
        ("a\thttp://x/a\nb\tc\thttp://x/b\n", "{}", ".json", "has a line (2) of another form; this needs a Conceptual"),
    ],
)
def test_faults_are_named(table: str, files: str, suffix: str, message: str, image_files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        make(tmp_path, image_files, table, files, suffix)
    assert message in str(error.value)


def test_a_missing_map_is_named(image_files: Path, tmp_path: Path) -> None:
    make(tmp_path, image_files)
    with pytest.raises(UserError, match=r"^`map` \(=.*none.tsv\) must be a file$"):
        ConceptualCaptionsSource(tmp_path / "cc.tsv", image_files, tmp_path / "none.tsv")


def test_real_validation_table(test_data: Path, image_files: Path, tmp_path: Path) -> None:
    table = test_data / "annotations/cc3m_validation.tsv"
    caption, url = table.read_text(encoding="utf-8").split("\n")[9000].split("\t")
    (tmp_path / "map.tsv").write_text(f"{url}\t0.png\n")
    source = ConceptualCaptionsSource(table, image_files, tmp_path / "map.tsv")
    assert len(source) + source.skipped == table.read_bytes().count(b"\n")
    assert source[0].captions == (caption.strip(),)
    assert source[0].metadata["url"] == url
