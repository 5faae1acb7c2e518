"""Bottom-up attention tables: the real LXMERT file, the original form, and what does not fit."""

import base64
import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.errors import DamagedSample, UserError
from shards.filters import Filters
from shards.inspect import write_page
from shards.reader import ShardSet
from shards.sources.bottom_up import BottomUpSource
from shards.sources.karpathy import KarpathySource
from shards.stats import stats
from shards.verify import verify
from shards.write import build_shards
from tests.shards.conftest import png

RNG = np.random.default_rng(0)


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def corpus(folder: Path, images: list[tuple[str, int, int]]) -> KarpathySource:
    """Images of the given names and sizes, with captions in Karpathy form."""
    entries = []
    for i, (name, width, height) in enumerate(images):
        (folder / name).write_bytes(png(i, width, height))
        entries.append({"filename": name, "split": "train", "sentences": [{"raw": f"text {i}"}]})
    (folder / "dataset.json").write_text(json.dumps({"images": entries}))
    return KarpathySource(folder / "dataset.json", folder, "train")


def test_the_real_table_round_trips(test_data: Path, tmp_path: Path) -> None:
    """Against a reading by the column names that LXMERT's own documentation gives."""
    table = test_data / "annotations/bottom_up_attention_obj36_10images.tsv"
    fields = ["img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes"]
    fields += ["boxes", "features"]
    csv.field_size_limit(sys.maxsize)
    with table.open() as file:
        rows = list(csv.DictReader(file, fields, delimiter="\t"))
    (tmp_path / "images").mkdir()
    images = [(f"{row['img_id']}.png", int(row["img_w"]), int(row["img_h"])) for row in rows]
    source = BottomUpSource(corpus(tmp_path / "images", [*images, ("other.png", 4, 4)]), table)
    assert (len(source), source.skipped) == (10, 1)
    build_shards(source, tmp_path / "set", samples_per_shard=4)
    assert verify(tmp_path / "set").ok
    shards = ShardSet(tmp_path / "set")
    for i, row in enumerate(rows):
        sample = shards[i]
        features = np.frombuffer(base64.b64decode(row["features"]), np.float32).reshape(36, 2048)
        boxes = np.frombuffer(base64.b64decode(row["boxes"]), np.float32).reshape(36, 4)
        assert sample.region_features is not None
        np.testing.assert_array_equal(sample.region_features, features)
        np.testing.assert_array_equal([region.box for region in sample.regions], boxes)
        objects = np.frombuffer(base64.b64decode(row["objects_id"]), np.int64)
        assert [region.label for region in sample.regions] == [str(number) for number in objects]
        scores = np.frombuffer(base64.b64decode(row["objects_conf"]), np.float32)
        np.testing.assert_array_equal(np.float32([region.score for region in sample.regions]), scores)
        assert sample.captions == (f"text {i}",)
        assert len(sample.metadata["attribute_scores"]) == 36
    half = BottomUpSource(source.corpus, table, half=True)
    assert half[0].region_features is not None
    assert half[0].region_features.dtype == np.float16
    assert half.fingerprint() != source.fingerprint()


BOXES = np.array([[0, 0, 3, 3], [1, 1, 5, 4]], dtype=np.float32)
FEATURES = RNG.normal(size=(2, 6)).astype(np.float32)


def line(name: str = "7", width: int = 6, height: int = 4, boxes: np.ndarray = BOXES) -> str:
    return "\t".join([name, str(width), str(height), "2", encoded(boxes), encoded(FEATURES)]) + "\n"


def with_labels(name: str) -> str:
    ids, confidences = np.array([1, 0]), np.array([0.2, 0.9], dtype=np.float32)
    columns = [name, "4", "6", *(encoded(a) for a in (ids, confidences, ids[::-1].copy(), confidences)), "2"]
    return "\t".join([*columns, encoded(BOXES), encoded(FEATURES)]) + "\n"


def test_ids_of_the_original_form_match_the_end_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text(line("7"))
    source = BottomUpSource(corpus(tmp_path, [("COCO_val2014_000000000007.png", 6, 4)]), tmp_path / "table.tsv")
    sample = source[0]
    assert [region.box for region in sample.regions] == [tuple(box) for box in BOXES]
    assert {region.label for region in sample.regions} == {""}
    np.testing.assert_array_equal(sample.region_features, FEATURES)


def test_vocabularies_give_names_and_tags(tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text(with_labels("a"))
    (tmp_path / "objects.txt").write_text("star,sun\nring\n")
    (tmp_path / "attributes.txt").write_text("red\nblue\n")
    images = corpus(tmp_path, [("a.png", 6, 4)])
    sample = BottomUpSource(images, tmp_path / "table.tsv", tmp_path / "objects.txt", tmp_path / "attributes.txt")[0]
    assert [(region.label, region.attributes) for region in sample.regions] == [("ring", ("red",)), ("star", ("blue",))]
    assert sample.tags == ("star", "ring")
    (tmp_path / "objects.txt").write_text("star\n")
    with pytest.raises(DamagedSample, match="class 1 is not in a vocabulary of 1"):
        BottomUpSource(images, tmp_path / "table.tsv", tmp_path / "objects.txt")[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (line("7", width=8), r"COCO_7.png is 6x4, but its regions are of 8x4"),
        (line("7", boxes=BOXES[:1]), r"the regions of COCO_7.png cannot be read: `boxes` has 4 numbers for 2 boxes"),
        (line("7").replace("AA", "??"), "the regions of COCO_7.png cannot be read"),
    ],
)
def test_lines_that_do_not_fit_are_damaged_samples(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text(content)
    source = BottomUpSource(corpus(tmp_path, [("COCO_7.png", 6, 4)]), tmp_path / "table.tsv")
    with pytest.raises(DamagedSample, match=message):
        source[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\n", r"line 1 of `features` .* must have 6 or 10 columns, not 2"),
        (line("7") + line("7"), r"must name image 7 once, but line 2 does again"),
        (line("8"), r"must name an image of the corpus, whose names differ: `COCO_7.png` and `8`"),
        ("", r"whose names differ: an empty table"),
    ],
)
def test_tables_that_do_not_fit_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        BottomUpSource(corpus(tmp_path, [("COCO_7.png", 6, 4)]), tmp_path / "table.tsv")


@pytest.mark.parametrize("filters", [None, Filters(min_short_side=4, decodable=True, exact_duplicates=True)])
def test_regions_alone(filters: Filters | None, tmp_path: Path) -> None:
    """Users of published features often have no images: the samples are those with images, without them."""
    images = [("COCO_7.png", 6, 4), ("COCO_8.png", 6, 4)]
    (tmp_path / "table.tsv").write_text(line("7") + line("8"))
    whole = BottomUpSource(corpus(tmp_path, images), tmp_path / "table.tsv")
    alone = BottomUpSource(KarpathySource(tmp_path / "dataset.json", None, "train"), tmp_path / "table.tsv")
    assert alone.fingerprint() != whole.fingerprint()
    manifest = build_shards(alone, tmp_path / "out", filters=filters)
    assert manifest.samples == 2
    assert verify(tmp_path / "out").ok
    back = ShardSet(tmp_path / "out")
    for i in range(2):
        metadata = {**whole[i].metadata, "width": 6, "height": 4}
        assert back[i] == dataclasses.replace(whole[i], image=b"", extension="", metadata=metadata)
    assert stats(tmp_path / "out").image_bytes == 0
    write_page(tmp_path / "out", tmp_path / "out.html")


def test_shards_with_and_without_images_are_read_alike(make_source: Any, tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text(line("7"))
    corpus(tmp_path, [("COCO_7.png", 6, 4)])
    alone = BottomUpSource(KarpathySource(tmp_path / "dataset.json", None, "train"), tmp_path / "table.tsv")
    source = make_source(3)
    source.samples.insert(1, dataclasses.replace(alone[0], key="alone"))
    build_shards(source, tmp_path / "out")
    assert verify(tmp_path / "out").ok
    assert [ShardSet(tmp_path / "out")[i] for i in range(4)] == source.samples
