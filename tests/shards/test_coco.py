"""Official COCO captions: joined by image_id, ragged, and the same samples as the other forms of the same file."""

import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import DamagedSample, UserError
from shards.sources.albef import AlbefSource
from shards.sources.coco import CocoSource
from shards.sources.karpathy import KarpathySource

CONTENT: dict[str, Any] = {
    "info": {},
    "images": [{"id": 7, "file_name": "more/1.png", "width": 6}, {"id": 0, "file_name": "0.png"}],
    "annotations": [
        {"image_id": 0, "id": 30, "caption": " First of 0. "},
        {"image_id": 7, "id": 10, "caption": "Only one of 7."},
        {"image_id": 0, "id": 20, "caption": "Second of 0.\n"},
        {"image_id": 0, "id": 40, "caption": "  "},
    ],
}


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(CONTENT))
    return path


def test_joins_captions_by_image(annotations: Path, image_files: Path) -> None:
    source = CocoSource(annotations, image_files)
    assert [source[i].captions for i in range(len(source))] == [("Only one of 7.",), ("First of 0.", "Second of 0.")]
    assert source[0].key == "more-1"
    assert source[0].image == (image_files / "more/1.png").read_bytes()
    assert source[1].metadata == {"cocoid": 0, "sentids": [30, 20], "file": "0.png"}


def test_fingerprint_follows_captions_and_file_sizes(annotations: Path, image_files: Path) -> None:
    first = CocoSource(annotations, image_files)
    assert first.fingerprint() == CocoSource(annotations, image_files).fingerprint()
    assert first.identity(1) == (first.fingerprint()[:16], 1)
    annotations.write_text(json.dumps(CONTENT).replace("Only", "Just"))
    second = CocoSource(annotations, image_files)
    (image_files / "0.png").write_bytes(b"other")
    assert len({first.fingerprint(), second.fingerprint(), CocoSource(annotations, image_files).fingerprint()}) == 3
    (image_files / "0.png").unlink()
    with pytest.raises(DamagedSample, match=r"^0.png: No such file"):
        second[1]


def test_ids_may_be_text_but_text_is_no_number(tmp_path: Path, image_files: Path) -> None:
    path = tmp_path / "captions.json"
    image, caption = {"id": "a7", "file_name": "0.png"}, {"image_id": "a7", "id": "c1", "caption": "A."}
    path.write_text(json.dumps({"images": [image], "annotations": [caption]}))
    assert CocoSource(path, image_files)[0].metadata == {"cocoid": "a7", "sentids": ["c1"], "file": "0.png"}
    path.write_text(json.dumps({"images": [{**image, "id": 7}], "annotations": [{**caption, "image_id": "7"}]}))
    with pytest.raises(UserError, match="has a caption of image_id '7', which `images` must list"):
        CocoSource(path, image_files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": CONTENT["annotations"][1:2]}, "image `0.png` must have at least one caption"),
        ({"images": CONTENT["images"][1:]}, "has a caption of image_id 7, which `images` must list"),
        ({"images": CONTENT["images"][:1]}, "has a caption of image_id 0, which `images` must list"),
        ({"images": [CONTENT["images"][0]] * 2}, "must give each image an `id` of its own"),
        (
            {"annotations": [{"image_id": 7, "id": 1, "bbox": []}]},
            "has an entry (annotations[0]) of another form; this",
        ),
        ({"images": [{"id": None, "file_name": "0.png"}]}, "has an entry (images[0]) of another form; this needs"),
        ({"images": {}}, "has `images` of another form; this needs an official COCO captions file"),
        ({"images": [{"id": 7, "file_name": "../1.png"}]}, "image `../1.png` must be a path below `images` (="),
        ({"images": [*CONTENT["images"], {"id": 8, "file_name": "0.png"}]}, "image `0.png` must be named once in the"),
        ({"images": [{"id": 7, "file_name": "7.png"}]}, "lacks 1 of 1 images, the first is 7.png"),
    ],
)
def test_faults_are_named(change: dict[str, Any], message: str, tmp_path: Path, image_files: Path) -> None:
    content = {**CONTENT, **change}
    if "7.png" in message or "../1" in message:
        content["annotations"] = CONTENT["annotations"][1:2]
    if "named once" in message:
        content["annotations"] = [*CONTENT["annotations"], {"image_id": 8, "id": 50, "caption": "More."}]
    (tmp_path / "captions.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        CocoSource(tmp_path / "captions.json", image_files)
    assert message in str(error.value)


def test_three_forms_of_one_real_file_agree(test_data: Path, tmp_path: Path) -> None:
    """The images are not at hand: empty files stand for them."""
    folder = test_data / "annotations"
    (tmp_path / "val2014").mkdir()
    for image in json.loads((folder / "coco_test5k_official_format.json").read_bytes())["images"]:
        (tmp_path / "val2014" / image["file_name"]).touch()
    coco = CocoSource(folder / "coco_test5k_official_format.json", tmp_path / "val2014")
    karpathy = KarpathySource(folder / "coco_test5k_karpathy_format.json", tmp_path, "test")
    albef = AlbefSource(folder / "coco_test_albef_format.json", tmp_path)
    assert len(coco) == len(karpathy) == len(albef) == 5000
    assert sum(len(albef[i].captions) for i in range(len(albef))) == 25010
    for i in range(5000):
        other = karpathy[i]
        # The official-form file holds the first five captions of each image.
        assert coco[i].captions == other.captions[:5]
        assert albef[i].captions == other.captions
        assert coco[i].metadata["cocoid"] == other.metadata["cocoid"]
        assert coco[i].metadata["sentids"] == other.metadata["sentids"][:5]
        assert albef[i].metadata == {"file": other.metadata["file"]}
