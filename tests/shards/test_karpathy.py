"""Karpathy JSON: what is read, what is kept, and what is refused in which words."""

import json
from pathlib import Path

import pytest

from shards.errors import DamagedSample, UserError
from shards.sources.karpathy import KarpathySource

Files = tuple[Path, Path]


def test_reads_captions_files_and_metadata(karpathy_files: Files) -> None:
    source = KarpathySource(*karpathy_files, "train")
    assert len(source) == 4
    sample = source[2]
    assert sample.key == "style0-1"
    assert sample.image == (karpathy_files[1] / "style0/1.png").read_bytes()
    assert sample.captions == ("Text 2 0.", "Text 2 1.", "Text 2 2.")
    assert sample.metadata == {
        "split": "train",
        "cocoid": 102,
        "concept": "c1",
        "sentids": [20, 21, 22],
        "file": "style0/1.png",
    }


def test_joined_splits(karpathy_files: Files) -> None:
    source = KarpathySource(*karpathy_files, "train+restval")
    assert [source[i].metadata["split"] for i in range(len(source))] == ["train"] * 4 + ["restval"] * 2


def test_fingerprint_follows_records_and_file_sizes(karpathy_files: Files) -> None:
    first = KarpathySource(*karpathy_files, "train")
    assert first.fingerprint() == KarpathySource(*karpathy_files, "train").fingerprint()
    assert first.identity(1) == (first.fingerprint()[:16], 1)
    with (karpathy_files[1] / "style0/0.png").open("ab") as file:
        file.write(b"more")
    assert KarpathySource(*karpathy_files, "train").fingerprint() != first.fingerprint()


def test_keys_that_would_collide_differ(karpathy_files: Files) -> None:
    annotations, images = karpathy_files
    content = json.loads(annotations.read_text())
    content["images"][1]["filename"] = "0.v2.png"
    content["images"][3]["filename"] = "0-v2.png"
    annotations.write_text(json.dumps(content))
    for name in ("0.v2.png", "0-v2.png"):
        (images / "style1" / name).write_bytes((images / "style0/0.png").read_bytes())
    source = KarpathySource(annotations, images, "train")
    keys = [source[i].key for i in range(4)]
    assert len(set(keys)) == 4
    assert not any("." in key or "/" in key for key in keys)


def test_file_that_vanishes_is_a_damaged_sample(karpathy_files: Files) -> None:
    source = KarpathySource(*karpathy_files, "train")
    (karpathy_files[1] / "style0/0.png").unlink()
    with pytest.raises(DamagedSample, match=r"^style0/0.png: No such file"):
        source[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ({"images": [{"file_name": "a"}], "annotations": []}, "looks like an official COCO captions file; this needs"),
        ([{"image": "a.jpg", "caption": ["a"]}], "looks like an ALBEF list; this needs"),
        ({"images": [{"filename": "a.jpg", "split": "train"}]}, "has an entry (images[0]) of another form"),
        ({"x": 1}, "is JSON of an unknown form; this needs a Karpathy file"),
        (
            {"images": [{"filename": "a", "split": "train", "sentences": []}]},
            "image `a` must have at least one caption",
        ),
    ],
)
def test_other_forms_are_named(content: object, message: str, karpathy_files: Files) -> None:
    annotations, images = karpathy_files
    annotations.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as error:
        KarpathySource(annotations, images, "train")
    assert message in str(error.value)


def test_missing_files_folders_and_splits(karpathy_files: Files, tmp_path: Path) -> None:
    annotations, images = karpathy_files
    with pytest.raises(UserError, match=r"^`annotations` \(=.*none.json\) must be a file$"):
        KarpathySource(tmp_path / "none.json", images, "train")
    with pytest.raises(UserError, match=r"^`images` \(=.*none\) must be a folder$"):
        KarpathySource(annotations, tmp_path / "none", "train")
    with pytest.raises(UserError, match=r"`split` \(=val\) must name images; the file has restval \(2\), test \(1\), "):
        KarpathySource(annotations, images, "val")
    (images / "style1/1.png").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 4 images, the first is style1/1.png$"):
        KarpathySource(annotations, images, "train")


def test_emoji_corpus(test_data: Path) -> None:
    source = KarpathySource(test_data / "emoji/dataset.json", test_data / "emoji/images", "test")
    assert len(source) == 651
    assert sum(len(source[i].captions) for i in range(len(source))) == 3255
    assert source[0].metadata["style"] == "emojitwo"


def test_coco_annotations(test_data: Path, tmp_path: Path) -> None:
    """The images are not at hand: empty files stand for them."""
    annotations = test_data / "annotations/coco_test5k_karpathy_format.json"
    (tmp_path / "val2014").mkdir()
    for image in json.loads(annotations.read_bytes())["images"]:
        (tmp_path / "val2014" / image["filename"]).touch()
    source = KarpathySource(annotations, tmp_path, "test")
    sample = source[0]
    assert len(source) == 5000
    assert sample.key == "val2014-COCO_val2014_000000391895"
    assert sample.metadata["cocoid"] == 391895
    assert sample.metadata["sentids"] == [770337, 771687, 772707, 776154, 781998]


@pytest.mark.parametrize(("name", "form"), [("coco_test5k_official", "official COCO"), ("coco_test_albef", "ALBEF")])
def test_real_files_of_other_forms(name: str, form: str, test_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"looks like an {form}"):
        KarpathySource(test_data / f"annotations/{name}_format.json", tmp_path, "test")
