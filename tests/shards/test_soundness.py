"""A sample that is not sound never stops a build: it is left out, named and counted, with filters and without."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.errors import DamagedSample, UserError
from shards.filters import Filters
from shards.manifest import FilterReport, Manifest
from shards.reader import ShardSet
from shards.sample import Region, Sample
from shards.soundness import CAPTION_BYTES, IMAGE_BYTES, RECORD_BYTES, UNSOUND
from shards.verify import verify
from shards.write import build_shards
from tests.shards.bounded import run_bounded
from tests.shards.conftest import png
from tests.shards.folders import contents
from tests.shards.hostile import BOMBS

HALF = "half \ud83d of a smile"
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "no bytes": ({"image": b""}, "image_unreadable"),
    "HTML": ({"image": b"<html>404</html>"}, "image_unreadable"),
    "SVG": ({"image": b"<svg/>", "extension": "svg"}, "image_unreadable"),
    "a film": ({"extension": "mp4"}, "image_unreadable"),
    "a header cut": ({"image": png(1)[:20]}, "image_unreadable"),
    "a PNG bomb": ({"image": BOMBS["png"]}, "image_too_large"),
    "a JPEG bomb": ({"image": BOMBS["jpeg"], "extension": "jpg"}, "image_too_large"),
    "a giant file": ({"image": png(1) + bytes(IMAGE_BYTES)}, "image_too_large"),
    "no caption": ({"captions": ()}, "no_caption"),
    "half a surrogate pair": ({"captions": (HALF,)}, "caption_unreadable"),
    "bytes that are not UTF-8": ({"captions": (b"caf\xe9".decode("utf-8", "surrogateescape"),)}, "caption_unreadable"),
    "NUL": ({"captions": ("T\0h\0e\0",)}, "caption_unreadable"),
    "ten megabytes": ({"captions": ("x" * 10_000_000,)}, "caption_too_long"),
    "just too long": ({"captions": ("é" * (CAPTION_BYTES // 2) + "e",)}, "caption_too_long"),
    "half a pair in metadata": ({"metadata": {"a": [HALF]}}, "record_unreadable"),
    "half a pair in a name": ({"metadata": {HALF: 1}}, "record_unreadable"),
    "half a pair in a tag": ({"tags": (HALF,)}, "record_unreadable"),
    "half a pair in a label": ({"regions": (Region((0.0, 0.0, 1.0, 1.0), HALF),)}, "record_unreadable"),
    "features without regions": ({"region_features": np.zeros((1, 2), np.float32)}, "regions_unreadable"),
    "giant metadata": ({"metadata": {"exif": "x" * RECORD_BYTES}}, "record_too_large"),
}
SOUND = {
    "control characters": "a\x01b\x1f\x7f\x85 c",
    "as long as can be": "é" * (CAPTION_BYTES // 2),
    "many words": "😀 " * 100,
    "lines": "one\ntwo\r\nthree\u2028four",
}


@pytest.fixture
def hostile(make_source: Any) -> Any:
    """Between sound samples, one of each kind; the very last cannot be read."""
    samples = make_source(2 * len(HOSTILE) + len(SOUND)).samples
    for i, (fields, _) in enumerate(HOSTILE.values()):
        samples[2 * i + 1] = dataclasses.replace(samples[2 * i + 1], **fields)
    for i, caption in enumerate(SOUND.values()):
        samples[2 * len(HOSTILE) + i] = dataclasses.replace(samples[2 * len(HOSTILE) + i], captions=(caption,))

    class Source(type(make_source(1))):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Sample:
            if index == len(self) - 1:
                raise DamagedSample("gone")
            return super().__getitem__(index)

    return Source([*samples, samples[0]])


def expected(hostile: Any) -> dict[int, str]:
    reasons = {2 * i + 1: reason for i, (_, reason) in enumerate(HOSTILE.values())}
    return {**reasons, len(hostile) - 1: "unreadable"}


def report_of(manifest: Manifest) -> FilterReport:
    assert manifest.filtered is not None
    return manifest.filtered


@pytest.mark.parametrize("filters", [None, Filters(decodable=True), Filters(min_short_side=1, max_aspect=3)])
def test_each_is_named_and_the_others_are_kept(filters: Filters | None, hostile: Any, tmp_path: Path) -> None:
    manifest = build_shards(hostile, tmp_path, samples_per_shard=7, filters=filters)
    rejected = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert {row["index"]: row["reason"] for row in rejected} == expected(hostile)
    report = report_of(manifest)
    assert report.read == len(hostile) == report.kept + sum(report.rejected.values())
    assert list(report.rejected) == [reason for reason in UNSOUND if reason in set(expected(hostile).values())]
    back = ShardSet(tmp_path)
    sound = [sample for i, sample in enumerate(hostile.samples) if i not in expected(hostile)]
    assert [back[i] for i in range(len(back))] == sound
    assert sum(shard.samples for shard in manifest.shards) == report.kept == len(sound)
    assert report.lines()[0].startswith(f"{len(hostile)} samples read, {report.kept} kept, 1 rejected by unreadable, ")
    assert verify(tmp_path).ok


def test_counts_are_the_same_with_and_without_filters(hostile: Any, tmp_path: Path) -> None:
    plain = report_of(build_shards(hostile, tmp_path / "a", samples_per_shard=7))
    scanned = report_of(build_shards(hostile, tmp_path / "b", filters=Filters(min_short_side=1)))
    assert plain == scanned.model_copy(update={"rejections_sha256": plain.rejections_sha256})
    assert plain.rejections_sha256 == scanned.rejections_sha256


def test_a_resumed_build_remembers_what_was_left_out(hostile: Any, tmp_path: Path) -> None:
    """As after a kill before the list and the manifest were written, with one shard unfinished."""
    build_shards(hostile, tmp_path / "whole", samples_per_shard=7)
    build_shards(hostile, tmp_path / "killed", samples_per_shard=7)
    plan = json.loads((tmp_path / "killed" / "manifest.json").read_bytes())["plan"]
    (tmp_path / "killed" / ".build.json").write_text(json.dumps(plan))
    for name in ("manifest.json", "rejected.parquet", "shard-000002.index.parquet"):
        (tmp_path / "killed" / name).unlink()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.tar")}
    build_shards(hostile, tmp_path / "killed", samples_per_shard=7, existing="resume")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    written = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert written == ["shard-000002.tar"]


def test_one_caption_among_others_costs_that_caption(make_source: Any, tmp_path: Path) -> None:
    source = make_source(3)
    captions = ("sound", HALF, "x" * 10_000_000, "sound, too")
    source.samples[1] = dataclasses.replace(source.samples[1], captions=captions, metadata={"sentids": [4, 5, 6, 7]})
    manifest = build_shards(source, tmp_path)
    report = report_of(manifest)
    assert (report.kept, report.rejected) == (3, {})
    assert report.captions_dropped == {"caption_unreadable": 1, "caption_too_long": 1}
    assert report.captions_read == 1 + 4 + 3
    back = ShardSet(tmp_path)[1]
    assert (back.captions, back.metadata) == (("sound", "sound, too"), {"sentids": [4, 7]})


def test_nothing_left_out_says_nothing(make_source: Any, tmp_path: Path) -> None:
    assert build_shards(make_source(9), tmp_path).filtered is None
    assert not (tmp_path / "rejected.parquet").exists()


def test_whole_shards_may_be_left_out_but_not_all(make_source: Any, tmp_path: Path) -> None:
    source = make_source(6)
    source.samples[2:4] = [dataclasses.replace(sample, image=b"") for sample in source.samples[2:4]]
    manifest = build_shards(source, tmp_path / "a", samples_per_shard=2)
    assert [shard.samples for shard in manifest.shards] == [2, 0, 2]
    assert verify(tmp_path / "a").ok
    assert len(ShardSet(tmp_path / "a")) == 4
    source.samples = [dataclasses.replace(sample, image=b"") for sample in source.samples]
    message = r"`list` must have a sample that can be kept: 6 samples read, 0 kept, 6 rejected by image_unreadable"
    with pytest.raises(UserError, match=message):
        build_shards(source, tmp_path / "b", samples_per_shard=2)
    assert not (tmp_path / "b" / "manifest.json").exists()


MANY = """
import sys
from pathlib import Path
from shards.sample import Identity, Sample
from shards.write import build_shards
from tests.shards.conftest import png

class Noisy:
    "Every other sample has a caption of ten megabytes, or an image of 200."
    name = "noisy"
    image = png(1)
    giant = png(1) + bytes(200 << 20)

    def __len__(self):
        return 400

    def __getitem__(self, index):
        caption = "x" * 10_000_000 if index % 2 else "small"
        return Sample(f"{index}", self.giant if index % 4 == 2 else self.image, "png", (caption,))

    def identity(self, index):
        return Identity("noisy", index)

    def fingerprint(self):
        return "0"

source = Noisy()
bound(120 << 20)
print(build_shards(source, Path(sys.argv[1]), samples_per_shard=100).filtered.rejected)
"""


def test_a_build_of_giants_needs_no_more_than_the_largest(tmp_path: Path) -> None:
    """Two gigabytes of captions and twenty of images under a limit of 120 MiB beside the one image."""
    printed = run_bounded(MANY, str(tmp_path / "out"))
    assert printed.strip() == str({"image_too_large": 100, "caption_too_long": 200})
