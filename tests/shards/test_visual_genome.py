"""Visual Genome in its published form, small: phrases, objects, attributes and relations end up where they belong."""

import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import UserError
from shards.sample import Region, Relation
from shards.sources.visual_genome import VisualGenomeSource
from tests.shards.conftest import png

REGIONS = [
    {
        "id": 1,
        "regions": [
            {"region_id": 5, "image_id": 1, "phrase": "a red clock ", "x": 1, "y": 2, "width": 3, "height": 2},
            {"region_id": 6, "image_id": 1, "phrase": "a wall", "x": 0, "y": 0, "width": 6, "height": 4},
            {"region_id": 7, "image_id": 1, "phrase": "a wall", "x": 0, "y": 0, "width": 5, "height": 4},
        ],
    },
    {"id": 2, "regions": [{"phrase": "a tree", "x": 0, "y": 0, "width": 1, "height": 1}]},
    {"id": 3, "regions": []},
]
DATA = [
    {"image_id": 1, "url": "https://x/rak248/VG_100K_2/1.jpg", "width": 6, "height": 4, "coco_id": None},
    {"image_id": 2, "url": "https://x/rak248/VG_100K/2.jpg", "width": 6, "height": 4, "coco_id": 77},
    {"image_id": 3, "url": "https://x/rak248/VG_100K/3.jpg"},
]
ATTRIBUTES = [
    {
        "image_id": 1,
        "attributes": [
            {"object_id": 10, "names": ["clock"], "attributes": ["red", "round "], "x": 1, "y": 2, "w": 3, "h": 2},
            {"object_id": 11, "names": ["wall"], "x": 0, "y": 0, "w": 6, "h": 4},
        ],
    }
]
RELATIONSHIPS = [
    {
        "image_id": 1,
        "relationships": [
            {"predicate": "ON", "subject": {"object_id": 10}, "object": {"object_id": 11}},
            {"predicate": "near", "subject": {"object_id": 10}, "object": {"object_id": 99}},
        ],
    }
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for i, name in enumerate(("VG_100K_2/1.jpg", "VG_100K/2.jpg")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png(i))
    contents = {"annotations": REGIONS, "image_data": DATA, "attributes": ATTRIBUTES, "relationships": RELATIONSHIPS}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return {"images": tmp_path, **{name: tmp_path / f"{name}.json" for name in contents}}


def make(files: dict[str, Path], *options: str) -> VisualGenomeSource:
    return VisualGenomeSource(**{name: files[name] for name in ("annotations", "image_data", "images", *options)})


def test_phrases_are_captions_and_boxes_regions(files: dict[str, Path]) -> None:
    source = make(files)
    assert len(source) == 2
    assert source[0].captions == ("a red clock", "a wall")
    assert source[0].regions[0] == Region((1, 2, 4, 4), "a red clock")
    assert len(source[0].regions) == 3
    assert source[0].metadata == {"image_id": 1, "file": "VG_100K_2/1.jpg"}
    assert source[1].metadata == {"image_id": 2, "coco_id": 77, "file": "VG_100K/2.jpg"}


def test_objects_with_attributes_and_relations(files: dict[str, Path]) -> None:
    sample = make(files, "attributes", "relationships")[0]
    assert sample.regions == (
        Region((1, 2, 4, 4), "clock", ("red", "round")),
        Region((0, 0, 6, 4), "wall"),
    )
    assert sample.relations == (Relation(0, "on", 1),)
    assert make(files, "attributes")[0].relations == ()
    fingerprints = {make(files, *o).fingerprint() for o in ((), ("attributes",), ("attributes", "relationships"))}
    assert len(fingerprints) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("annotations", {"a": 1}, r"`annotations` .* has an unknown form; this needs \[{'id', 'regions', ...}\]"),
        ("annotations", [{"id": 1, "regions": [{"phrase": "a"}]}], r"has an entry \(image 1\) of another form"),
        ("image_data", DATA[1:], r"`image_data` .* lacks image 1, which `annotations` describes"),
        ("annotations", [REGIONS[2]], "must describe regions of at least one image"),
    ],
)
def test_faults_are_named(name: str, content: Any, message: str, files: dict[str, Path]) -> None:
    files[name].write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        make(files)


def test_relations_need_their_objects(files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"`relationships` .* needs `attributes`, whose objects it relates"):
        make(files, "relationships")
