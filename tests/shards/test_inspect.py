"""The page: whole in itself, safe against what captions hold, boxes in their places, damage shown."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shards.inspect import THUMBNAIL, write_page
from shards.sample import Region
from shards.sources.scenes import ScenesSource
from shards.write import build_shards
from tests.shards.conftest import png


class Page(HTMLParser):
    """Elements with their attributes, and all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]


def test_it_shows_what_the_set_holds(tmp_path: Path) -> None:
    source = ScenesSource(30, 0, "train")
    build_shards(source, tmp_path / "set", samples_per_shard=10)
    assert write_page(tmp_path / "set", tmp_path / "page.html", samples=6) == 6
    page = Page(tmp_path / "page.html")
    assert len(page.of_class("card")) == 6
    shown = [source[i] for i in (0, 5, 10, 15, 20, 25)]
    assert all(caption in page.text for sample in shown for caption in sample.captions)
    assert len(page.of_class("box")) == sum(len(sample.regions) for sample in shown)
    left, top, right, bottom = shown[0].regions[0].box
    shares = [100 * value / 64 for value in (left, top, right - left, bottom - top)]
    style = page.of_class("box")[0]["style"] or ""
    assert [float(value) for value in re.findall(r"[\d.]+(?=%)", style)] == pytest.approx(shares, abs=0.01)


def test_it_needs_no_other_file_and_runs_no_caption(make_source: Any, tmp_path: Path) -> None:
    source = make_source(3)
    hostile = ('<script>alert("x")</script>', '"><img src=http://x/y>')
    region = Region((0.0, 0.0, 2.0, 2.0), "<b>label</b>")
    large = png(1, 1200, 300)
    source.samples[1] = dataclasses.replace(
        source.samples[1], captions=hostile, regions=(region,), tags=("<i>",), image=large, metadata={"<u>": "<s>"}
    )
    build_shards(source, tmp_path / "set")
    write_page(tmp_path / "set", tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert not {"script", "i", "u", "s", "link", "iframe"} & {tag for tag, _ in page.elements}
    assert "<b>label" not in (tmp_path / "page.html").read_text()
    assert all(caption in page.text for caption in hostile)
    addresses = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert len(addresses) == 3
    assert all((address or "").startswith("data:image/jpeg;base64,") for address in addresses)
    with Image.open(io.BytesIO(base64.b64decode((addresses[1] or "").split(",")[1]))) as thumbnail:
        assert thumbnail.size == (THUMBNAIL, THUMBNAIL // 4)


def test_damage_is_shown_in_its_place(shard_folder: Path, tmp_path: Path) -> None:
    tar = shard_folder / "shard-000003.tar"
    tar.write_bytes(tar.read_bytes()[:520])
    write_page(shard_folder, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "shard-000003.tar, sample 0: the image ends after 8 of" in page.text
    assert len(page.of_class("card")) == 50
    assert len(page.of_class("frame")) == 42


def test_boxes_are_not_drawn_on_turned_images(make_source: Any, tmp_path: Path) -> None:
    """EXIF turns the picture; the boxes are in pixels of the stored one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (60, 20), "red").save(buffer, "jpeg", exif=exif)
    source = make_source(1)
    region = Region((0.0, 0.0, 2.0, 2.0), "corner")
    source.samples[0] = dataclasses.replace(source[0], image=buffer.getvalue(), extension="jpg", regions=(region,))
    build_shards(source, tmp_path / "set")
    write_page(tmp_path / "set", tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.of_class("box") == []
    assert "20x60, 1 regions (0 drawn)" in page.text
