"""ALBEF lists: one sample per image, captions as text or list, and paths that lead below the image folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import UserError
from shards.sources.albef import AlbefSource


def make(folder: Path, images: Path, *entries: Any) -> AlbefSource:
    (folder / "list.json").write_text(json.dumps(entries))
    return AlbefSource(folder / "list.json", images)


def test_groups_by_image(image_files: Path, tmp_path: Path) -> None:
    source = make(
        tmp_path,
        image_files,
        {"image": "more/1.png", "caption": "One. ", "image_id": "vg_1"},
        {"image": "0.png", "caption": ["A.", "", "B."]},
        {"image": str(image_files / "more/1.png"), "caption": ["Two.", "Three."], "image_id": "vg_1"},
    )
    assert [source[i].captions for i in range(len(source))] == [("One.", "Two.", "Three."), ("A.", "B.")]
    assert [source[i].metadata for i in range(2)] == [{"image_id": "vg_1", "file": "more/1.png"}, {"file": "0.png"}]
    assert source[1].image == (image_files / "0.png").read_bytes()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": "1.png"}, "has an entry ([1]) of another form; this needs an ALBEF list"),
        ({"image": "1.png", "caption": ["a", 3]}, "has an entry ([1]) of another form"),
        ({"image": "1.png", "caption": "a", "image_id": [1]}, "has an entry ([1]) of another form"),
        ({"image": "1.png", "caption": [" "]}, "image `1.png` must have at least one caption"),
        ({"image": "0.png", "caption": "a", "image_id": 2}, "image `0.png` must have the same `image_id` in all entr"),
        ({"image": "/elsewhere/1.png", "caption": "a"}, "image `/elsewhere/1.png` must be a path below `images` (="),
        ({"image": "2.png", "caption": "a"}, "lacks 1 of 2 images, the first is 2.png"),
    ],
)
def test_faults_are_named(entry: dict[str, Any], message: str, image_files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        make(tmp_path, image_files, {"image": "0.png", "caption": "a", "image_id": 1}, entry)
    assert message in str(error.value)
