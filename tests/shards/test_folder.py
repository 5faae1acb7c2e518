"""Folders of one's own: text files beside images, and tables whose columns are named."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import UserError
from shards.sources.folder import FolderSource, TableSource


@pytest.fixture
def beside(image_files: Path) -> Path:
    (image_files / "0.txt").write_text("A cat.\n\n A black cat. \n")
    (image_files / "1.txt").write_text("A dog.")
    (image_files / "more/1.txt").write_text("A bird.\r\n")
    (image_files / "README.md").write_text("Not an image.")
    return image_files


def test_text_beside_each_image(beside: Path) -> None:
    source = FolderSource(beside)
    captions = [source[i].captions for i in range(len(source))]
    assert captions == [("A cat.", "A black cat."), ("A dog.",), ("A bird.",)]
    assert [source[i].key for i in range(3)] == ["0", "1", "more-1"]
    assert source[2].metadata == {"file": "more/1.png"}
    assert source[2].image == (beside / "more/1.png").read_bytes()


def test_faults_of_folders_are_named(beside: Path, tmp_path: Path) -> None:
    (beside / "1.txt").write_text("\n")
    with pytest.raises(UserError, match=r"^image `1.png` must have at least one caption$"):
        FolderSource(beside)
    (beside / "1.txt").unlink()
    with pytest.raises(UserError, match=r"lacks a .txt beside 1 of 3 images, the first is 1.png$"):
        FolderSource(beside)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"must hold images \(bmp, gif, jpeg, jpg, png, tif, tiff, webp\)$"):
        FolderSource(tmp_path / "empty")
    with pytest.raises(UserError, match=r"^`images` \(=.*none\) must be a folder$"):
        FolderSource(tmp_path / "none")


ROWS = [("more/1.png", 'A "red" bird, flying.'), ("0.png", "A cat."), ("more/1.png", "A bird.")]


def write_table(path: Path) -> Path:
    if path.suffix == ".parquet":
        columns = {"file": ["more/1.png", "0.png"], "text": [[ROWS[0][1], ROWS[2][1]], [ROWS[1][1]]], "n": [1, 2]}
        pq.write_table(pa.table(columns), path)
    else:
        mark = {".csv": ",", ".tsv": "\t"}[path.suffix]
        lines = [mark.join((image, '"' + text.replace('"', '""') + '"', "1")) for image, text in ROWS]
        path.write_text("\n".join((mark.join(("file", "text", "n")), *lines)))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables_agree(suffix: str, image_files: Path, tmp_path: Path) -> None:
    source = TableSource(write_table(tmp_path / f"table{suffix}"), image_files, "file", "text")
    assert [source[i].captions for i in range(len(source))] == [(ROWS[0][1], ROWS[2][1]), ("A cat.",)]
    assert source[0].metadata == {"file": "more/1.png"}
    csv = TableSource(write_table(tmp_path / "table.csv"), image_files, "file", "text")
    assert source.fingerprint() == csv.fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            "image,captoin\n0.png,a\n",
            "lacks the column `caption`; did you mean `captoin`?; its columns are im",
        ),
        ("t.csv", "image,caption\n0.png\n", "row 1 of `table` (="),
        ("t.csv", "image,caption\n0.png,a,b\n", "line 2 of `table` (="),
        ("t.tsv", 'image\tcaption\n0.png\t"a\n1.png\tsay "b"\n', "cannot be read after line 1: "),
        ("t.tsv", 'image\tcaption\n0.png\t"a\n1.png\tb\n', "cannot be read after line 1: unexpected end of data"),
        ("t.csv", "image,caption\n9.png,a\n", "lacks 1 of 1 images, the first is 9.png"),
        ("t.csv", "image,caption\n0.png,\n", "image `0.png` must have at least one caption"),
        ("t.parquet", "image,caption\n", "cannot be read as parquet: "),
        ("t.txt", "image,caption\n", "must end in .csv, .tsv or .parquet"),
        ("t.tsv", "a dog\thttp://x/y.jpg\n", "looks like a Conceptual Captions table, which `shards build conceptual-"),
        ("t.token", "0.png#0\tA cat.\n", "must end in .csv, .tsv or .parquet; it looks like a Flickr30K token file, w"),
        ("t.json", '[{"image": "0.png", "caption": "a"}]', "; it looks like an ALBEF list, which `shards build albef`"),
    ],
)
def test_faults_of_tables_are_named(name: str, content: str, message: str, image_files: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        TableSource(tmp_path / name, image_files)
    assert message in str(error.value)
