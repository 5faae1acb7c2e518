"""Captions that are no text, or far too long, in every form of annotations: they are left out, the rest is built."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.reader import ShardSet
from shards.sources.albef import AlbefSource
from shards.sources.coco import CocoSource
from shards.sources.conceptual_captions import ConceptualCaptionsSource
from shards.sources.flickr30k import Flickr30kSource
from shards.sources.folder import FolderSource, TableSource
from shards.sources.karpathy import KarpathySource
from shards.sources.sbu import SbuSource
from shards.write import build_shards
from tests.shards.conftest import png

NAMES = ("0.png", "1.png", "2.png", "3.png")
CAPTIONS = (b"a sound one", b"caf\xe9 cr\xe8me", b"x" * 10_000_000, b"the last")
Make = Callable[[Path, Path], Any]


def lines(*rows: bytes) -> bytes:
    return b"".join(row + b"\n" for row in rows)


def pairs() -> list[tuple[bytes, bytes]]:
    return [(name.encode(), caption) for name, caption in zip(NAMES, CAPTIONS, strict=True)]


def table(separator: bytes) -> bytes:
    rows = (separator.join((name, b'"' + caption + b'"')) for name, caption in pairs())
    return lines(separator.join((b"image", b"caption")), *rows)


def parquet(path: Path, listed: bool) -> None:
    captions = pa.array(CAPTIONS, pa.binary()).view(pa.string())
    if listed:
        captions = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4], pa.int32()), captions)
    pq.write_table(pa.table({"image": pa.array(NAMES), "caption": captions}), path)


def from_json(content: Any, source: Callable[[Path, Path], Any]) -> Make:
    """The captions are put into the JSON as bytes; the second as half a surrogate pair where it is not."""
    text = json.dumps(content).encode()
    for i, caption in enumerate(CAPTIONS):
        text = text.replace(b"CAPTION %d" % i, caption)

    def make(folder: Path, images: Path) -> Any:
        (folder / "a.json").write_bytes(text)
        return source(folder / "a.json", images)

    return make


def written(name: str, content: bytes, source: Callable[[Path, Path], Any]) -> Make:
    def make(folder: Path, images: Path) -> Any:
        (folder / name).write_bytes(content)
        return source(folder / name, images)

    return make


def mapped(source: Any) -> Callable[[Path, Path], Any]:
    def make(path: Path, images: Path) -> Any:
        url_map = path.with_name("map.tsv")
        url_map.write_bytes(lines(*(b"http://x/%s\t%s" % (name, name) for name, _ in pairs())))
        return source(path, images, url_map)

    return make


def beside(folder: Path, images: Path) -> FolderSource:
    for name, caption in pairs():
        (images / name.decode()).with_suffix(".txt").write_bytes(caption)
    return FolderSource(images)


def in_parquet(listed: bool) -> Make:
    def make(folder: Path, images: Path) -> TableSource:
        parquet(folder / "a.parquet", listed)
        return TableSource(folder / "a.parquet", images)

    return make


KARPATHY = {
    "images": [{"filename": n, "split": "train", "sentences": [{"raw": f"CAPTION {i}"}]} for i, n in enumerate(NAMES)]
}
COCO = {
    "images": [{"id": i, "file_name": name} for i, name in enumerate(NAMES)],
    "annotations": [{"id": i, "image_id": i, "caption": f"CAPTION {i}"} for i in range(4)],
}
ALBEF = [{"image": name, "caption": f"CAPTION {i}"} for i, name in enumerate(NAMES)]
SBU = {"image_urls": [f"http://x/{name}" for name in NAMES], "captions": [f"CAPTION {i}" for i in range(4)]}
FORMS: dict[str, Make] = {
    "karpathy": from_json(KARPATHY, lambda path, images: KarpathySource(path, images, "train")),
    "coco": from_json(COCO, CocoSource),
    "albef": from_json(ALBEF, AlbefSource),
    "sbu": from_json(SBU, mapped(SbuSource)),
    "sbu lines": lambda folder, images: (
        (folder / "captions.txt").write_bytes(lines(*CAPTIONS)),
        written("urls.txt", lines(*(b"http://x/" + name for name, _ in pairs())), mapped(SbuSource))(folder, images),
    )[1],
    "conceptual captions": written(
        "a.tsv", lines(*(b"%s\thttp://x/%s" % (c, n) for n, c in pairs())), mapped(ConceptualCaptionsSource)
    ),
    "flickr30k": written("a.token", lines(*(b"%s#0\t%s" % pair for pair in pairs())), Flickr30kSource),
    "folder": beside,
    "csv": written("a.csv", table(b","), TableSource),
    "tsv": written("a.tsv", table(b"\t"), TableSource),
    "parquet": in_parquet(False),
    "parquet of lists": in_parquet(True),
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i, name in enumerate(NAMES):
        (tmp_path / "images" / name).write_bytes(png(i))
    return tmp_path / "images"


@pytest.mark.parametrize("form", FORMS)
def test_the_caption_is_left_out_and_the_rest_is_built(form: str, images: Path, tmp_path: Path) -> None:
    source = FORMS[form](tmp_path, images)
    manifest = build_shards(source, tmp_path / "out")
    assert manifest.filtered is not None
    assert manifest.filtered.rejected == {"caption_unreadable": 1, "caption_too_long": 1}
    back = ShardSet(tmp_path / "out")
    assert [back[i].captions for i in range(len(back))] == [("a sound one",), ("the last",)]
    longest = max(len(caption) for sample in (source[i] for i in range(4)) for caption in sample.captions)
    assert longest < 100_000, "what is too long is not held"


def test_half_a_surrogate_pair_of_json(images: Path, tmp_path: Path) -> None:
    content = [{"image": name, "caption": r"half \ud83d" if i == 1 else "whole"} for i, name in enumerate(NAMES)]
    (tmp_path / "a.json").write_text(json.dumps(content).replace(r"\\ud83d", r"\ud83d"))
    manifest = build_shards(AlbefSource(tmp_path / "a.json", images), tmp_path / "out")
    assert manifest.filtered is not None
    assert (manifest.filtered.kept, manifest.filtered.rejected) == (3, {"caption_unreadable": 1})


def test_file_names_that_are_not_utf8_lead_to_their_files(images: Path, tmp_path: Path) -> None:
    odd = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    (images / odd).write_bytes(png(9))
    (tmp_path / "a.csv").write_bytes(b"image,caption\n0.png,a cat\ncaf\xe9.png,a cup\n")
    build_shards(TableSource(tmp_path / "a.csv", images), tmp_path / "out")
    back = ShardSet(tmp_path / "out")
    assert [back[i].metadata["file"] for i in range(2)] == ["0.png", r"caf\xe9.png"]
    assert back[1].image == png(9)
