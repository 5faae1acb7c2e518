"""Region features and probabilities beside the record: stored bit for bit, checked, absent where there are none."""

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards.decode import decode_image
from shards.errors import DamagedSample
from shards.manifest import index_bytes, read_index, read_manifest, to_json
from shards.reader import ShardSet
from shards.sample import ARRAYS, Region, Sample, array_bytes, array_fault
from shards.sources.scenes import ScenesSource
from shards.verify import verify
from shards.write import build_shards

REGIONS = (Region((0.0, 0.0, 3.0, 3.0), "star"), Region((1.0, 1.0, 5.0, 4.0), "ring"))
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(2, 5)).astype(np.float32)
PROBABILITIES = RNG.dirichlet(np.ones(3), size=2).astype(np.float16)


@pytest.fixture
def mixed(make_source: Any) -> Any:
    """Samples with both arrays, with one of them, and with none."""
    source = make_source(4)
    both = {"regions": REGIONS, "region_features": FEATURES, "region_probabilities": PROBABILITIES}
    for i, names in enumerate((both, ("regions", "region_probabilities"), ("regions",))):
        source.samples[i] = dataclasses.replace(source.samples[i], **{name: both[name] for name in names})
    return source


def test_round_trip_bit_for_bit(mixed: Any, tmp_path: Path) -> None:
    build_shards(mixed, tmp_path / "out")
    back = ShardSet(tmp_path / "out")
    assert [back[i] for i in range(4)] == mixed.samples
    assert back[0].region_features is not None
    assert back[0].region_features.dtype == np.float32
    assert back[1].region_features is None
    assert verify(tmp_path / "out").ok


def test_bytes_do_not_depend_on_layout_in_memory(mixed: Any, tmp_path: Path) -> None:
    build_shards(mixed, tmp_path / "a")
    columns_first = np.asfortranarray(FEATURES)
    mixed.samples[0] = dataclasses.replace(mixed.samples[0], region_features=columns_first)
    build_shards(mixed, tmp_path / "b")
    assert (tmp_path / "a" / "shard-000000.tar").read_bytes() == (tmp_path / "b" / "shard-000000.tar").read_bytes()


def test_stock_numpy_reads_the_member(mixed: Any, tmp_path: Path) -> None:
    import tarfile

    build_shards(mixed, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        names = tar.getnames()
        member = tar.extractfile("key-0000.features.npy")
        assert member is not None
        np.testing.assert_array_equal(np.load(io.BytesIO(member.read())), FEATURES)
    assert [n for n in names if n.startswith("key-0000")] == [
        "key-0000.png",
        "key-0000.json",
        "key-0000.features.npy",
        "key-0000.probabilities.npy",
        "key-0000.txt",
    ]


def test_equality_sees_every_bit(mixed: Any) -> None:
    sample = mixed.samples[0]
    other = FEATURES.copy()
    assert sample == dataclasses.replace(sample, region_features=other)
    other[1, 4] = np.nextafter(other[1, 4], np.float32(9))
    assert sample != dataclasses.replace(sample, region_features=other)
    assert sample != dataclasses.replace(sample, region_features=FEATURES.astype(np.float16))
    assert sample != dataclasses.replace(sample, region_features=None)
    assert sample != "sample"


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (FEATURES[:1], "has shape [1, 5], not a row for each of 2 regions"),
        (FEATURES[0], "has shape [5], not a row for each of 2 regions"),
        (FEATURES.astype(np.float64), "has type float64, not float16 or float32"),
        (np.full((2, 2), np.nan, dtype=np.float16), "has values that are not finite"),
    ],
)
def test_arrays_that_do_not_fit_are_left_out(array: np.ndarray, fault: str, mixed: Any, tmp_path: Path) -> None:
    assert array_fault(array, 2) == fault
    mixed.samples[0] = dataclasses.replace(mixed.samples[0], region_features=array)
    report = build_shards(mixed, tmp_path).filtered
    assert report is not None
    assert report.rejected == {"regions_unreadable": 1}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_byte_is_found(name: str, mixed: Any, tmp_path: Path) -> None:
    build_shards(mixed, tmp_path)
    row = read_index(tmp_path / "shard-000000.index.parquet").to_pylist()[0]
    tar = tmp_path / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[row[f"{name}_offset"] + row[f"{name}_size"] - 1] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DamagedSample, match=f"sample 0: the {name} does not match its checksum"):
        ShardSet(tmp_path)[0]
    report = verify(tmp_path)
    message = f"key-0000.{name}.npy: its bytes do not match their crc32; lost: sample 0"
    assert any(str(finding).endswith(message) for finding in report.findings)
    assert report.lost == 1


def rewritten(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces the one shard's index, and the digests with it."""
    index = folder / "shard-000000.index.parquet"
    index.write_bytes(index_bytes(rows, {}))
    manifest = read_manifest(folder)
    entry = manifest.shards[0].model_copy(update={"index_sha256": hashlib.sha256(index.read_bytes()).hexdigest()})
    (folder / "manifest.json").write_bytes(to_json(manifest.model_copy(update={"shards": (entry,)})))


def test_an_array_of_another_sample_is_found(mixed: Any, tmp_path: Path) -> None:
    """Checksum and all, the index leads to the record of a sample without regions: the shape gives it away."""
    build_shards(mixed, tmp_path)
    rows = read_index(tmp_path / "shard-000000.index.parquet").to_pylist()
    rows[3] |= {name: value for name, value in rows[0].items() if name.startswith("features_")}
    rewritten(tmp_path, rows)
    message = "has shape [2, 5], not a row for each of 0 regions"
    assert any(message in str(finding) for finding in verify(tmp_path).findings)
    with pytest.raises(DamagedSample):
        ShardSet(tmp_path)[3]


def test_sets_without_the_columns_still_open(make_source: Any, tmp_path: Path) -> None:
    source = make_source(5)
    build_shards(source, tmp_path)
    index = tmp_path / "shard-000000.index.parquet"
    table = read_index(index)
    old = table.select([name for name in table.column_names if not name.startswith((*ARRAYS, "txt"))])
    assert len(old.column_names) == 11
    pq.write_table(old, index, compression="zstd")
    manifest = read_manifest(tmp_path)
    entry = manifest.shards[0].model_copy(update={"index_sha256": hashlib.sha256(index.read_bytes()).hexdigest()})
    (tmp_path / "manifest.json").write_bytes(to_json(manifest.model_copy(update={"shards": (entry,)})))
    shards = ShardSet(tmp_path)
    assert [shards[i] for i in range(5)] == source.samples
    assert verify(tmp_path).ok


def test_npy_bytes_are_fixed() -> None:
    """The on-disk form, pinned: a change would make rebuilds differ."""
    digest = hashlib.sha256(array_bytes(np.arange(6, dtype=np.float16).reshape(2, 3))).hexdigest()
    assert digest == "b885b5418dad152deb908001cf5af86c6e5eed87b99fc3acf966ce7657cd11d9"


@pytest.mark.parametrize("size", [48, 64, 130])
def test_scenes_carry_the_pixels_of_their_boxes(size: int) -> None:
    """Near the crops of the decoded JPEG, whose loss is the only difference: at most 0.035 was measured."""
    for i in range(20):
        sample: Sample = ScenesSource(20, 0, "train", size)[i]
        features = sample.region_features
        assert features is not None
        assert (features.dtype, features.shape) == (np.float16, (len(sample.regions), 192))
        image = Image.fromarray(decode_image(sample.image, "jpg"))
        for row, region in zip(features, sample.regions, strict=True):
            crop = np.asarray(image.crop(tuple(int(v) for v in region.box)).resize((8, 8), Image.Resampling.BILINEAR))
            assert np.abs(row.astype(np.float64).reshape(8, 8, 3) - crop / 255).mean() < 0.05
