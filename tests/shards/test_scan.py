"""Building with filters: counts add up, rejections are named, the result survives a kill, damage is counted."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shards import scan as scanning
from shards.errors import DamagedSample, UserError
from shards.filters import Filters
from shards.manifest import read_manifest
from shards.reader import ShardSet
from shards.sample import Sample
from shards.scan import scan
from shards.verify import verify
from shards.write import build_shards
from tests.shards.folders import contents


@pytest.fixture
def noisy(make_source: Any) -> Any:
    """30 samples: 3 cannot be read whole, 4 equal earlier ones, 2 have one-word captions only, 5 lose a caption."""
    source = make_source(30)
    change = dataclasses.replace
    samples = source.samples
    for i in (4, 11, 29):
        samples[i] = change(samples[i], image=samples[i].image[:-30])
    for i, original in ((5, 2), (12, 2), (20, 19), (21, 4)):
        samples[i] = change(samples[i], image=samples[original].image)
    for i in (7, 8):
        samples[i] = change(samples[i], captions=("word", "other"))
    for i in (1, 3, 6, 9, 10):
        samples[i] = change(samples[i], captions=("word", "two words"), metadata={"sentids": [70, 71]})
    return source


FILTERS = Filters(decodable=True, min_words=2, exact_duplicates=True)
REJECTED = (
    dict.fromkeys((4, 11, 29, 21), "decodable")
    | dict.fromkeys((7, 8), "min_words")
    | dict.fromkeys((5, 12, 20), "exact_duplicates")
)


def test_counts_add_up_and_rejections_are_named(noisy: Any, tmp_path: Path) -> None:
    manifest = build_shards(noisy, tmp_path, samples_per_shard=8, filters=FILTERS)
    report = manifest.filtered
    assert report is not None
    assert report.rejected == {"decodable": 4, "min_words": 2, "exact_duplicates": 3}
    assert (report.read, report.kept) == (30, 21) == (30, manifest.samples)
    assert report.captions_read == sum(len(sample.captions) for sample in noisy.samples)
    assert report.captions_dropped == {"min_words": 9}
    assert report.lines()[0] == (
        "30 samples read, 21 kept, 2 rejected by min_words, 4 rejected by decodable, 3 rejected by exact_duplicates"
    )
    named = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert {row["index"]: row["reason"] for row in named} == REJECTED
    assert [shard.samples for shard in manifest.shards] == [8, 8, 5]
    assert read_manifest(tmp_path) == manifest
    assert verify(tmp_path).ok
    assert not (tmp_path / ".scan").exists()


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_verify_checks_the_list_of_rejections(damage: str, noisy: Any, tmp_path: Path) -> None:
    build_shards(noisy, tmp_path, filters=FILTERS)
    (tmp_path / "rejected.parquet").unlink()
    if damage == "changed":
        (tmp_path / "rejected.parquet").write_bytes(b"other")
    state = {"missing": "is missing", "changed": "does not match its sha256"}[damage]
    report = verify(tmp_path)
    assert [finding.reason for finding in report.findings] == [f"the list of rejected samples {state}"]
    assert report.lost == 0


def test_kept_samples_are_as_they_were_but_for_dropped_captions(noisy: Any, tmp_path: Path) -> None:
    build_shards(noisy, tmp_path, samples_per_shard=8, filters=FILTERS)
    back = ShardSet(tmp_path)
    kept = [i for i in range(30) if i not in REJECTED]
    for index, original in zip(range(len(back)), kept, strict=True):
        expected = noisy.samples[original]
        if "word" in expected.captions:
            expected = dataclasses.replace(expected, captions=("two words",), metadata={"sentids": [71]})
        assert back[index] == expected


class Unreadable:
    """A source whose sample 3 cannot be read."""

    name = "unreadable"

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Sample:
        if index == 3:
            raise DamagedSample("3.png: input/output error")
        return self.inner[index]

    def identity(self, index: int) -> Any:
        return self.inner.identity(index)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


@pytest.mark.parametrize("filters", [None, Filters(min_words=1), Filters(decodable=True)])
def test_what_cannot_be_read_is_counted(filters: Filters | None, make_source: Any, tmp_path: Path) -> None:
    manifest = build_shards(Unreadable(make_source(6)), tmp_path / "a", filters=filters)
    assert manifest.filtered is not None
    assert manifest.filtered.rejected == {"unreadable": 1}
    assert (manifest.filtered.read, manifest.filtered.kept) == (6, 5) == (6, manifest.samples)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (
            Filters(min_words=9),
            r"the filters must keep at least one sample: 5 samples read, 0 kept, 5 rejected by min_",
        ),
        (Filters(max_nsfw=0.5), r"`max_nsfw` needs the metadata field `punsafe`, which no sample has as a number"),
    ],
)
def test_filters_that_make_no_sense_here(filters: Filters, message: str, make_source: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build_shards(make_source(5), tmp_path, filters=filters)
    assert not list(tmp_path.glob("*.tar"))


def test_resume_with_other_filters_is_refused(noisy: Any, tmp_path: Path) -> None:
    build_shards(noisy, tmp_path, filters=FILTERS)
    other = FILTERS.model_copy(update={"min_words": 3})
    with pytest.raises(UserError, match=r"`filters.min_words` \(=2\), not 3: use the same settings or --overwrite"):
        build_shards(noisy, tmp_path, filters=other, existing="resume")
    build_shards(noisy, tmp_path, existing="overwrite", filters=Filters(decodable=True))
    assert len(pq.read_table(tmp_path / "rejected.parquet")) == 4
    with pytest.raises(UserError, match=r"`filters.decodable` \(=True\), not None"):
        build_shards(noisy, tmp_path, existing="resume")


KILLED = """
import os, signal, sys
from pathlib import Path
from shards import scan
from shards.filters import Filters
from shards.sources.scenes import ScenesSource
from shards.write import build_shards

scan.CHUNK = 16
reads = 0

class Mortal(ScenesSource):
    def __getitem__(self, index):
        global reads
        reads += 1
        if reads == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

filters = Filters(max_characters=50, perceptual_distance=31)
build_shards(Mortal(100, 0, "train", 48), Path(sys.argv[1]), samples_per_shard=10, filters=filters, existing="resume")
print(reads)
"""


def test_killed_anywhere_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    """In the first chunk, between chunks, in the writing: the same bytes, and finished work is not done again."""

    def build(out: str, dies_at: int) -> tuple[int, str]:
        command = [sys.executable, "-c", KILLED, str(tmp_path / out), str(dies_at)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout

    status, reads = build("whole", 0)
    assert status == 0
    kept = int(reads) - 100
    assert 20 < kept < 100
    for dies_at in (5, 40, 100 + kept // 2):
        out = f"killed-{dies_at}"
        assert build(out, dies_at)[0] == -9
        status, resumed_reads = build(out, 0)
        assert status == 0
        assert int(resumed_reads) < int(reads) or dies_at == 5
        assert contents(tmp_path / out) == contents(tmp_path / "whole")


def test_a_damaged_part_of_the_scan_is_done_again(noisy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "CHUNK", 7)
    whole = scan(noisy, FILTERS, store=tmp_path)
    parts = sorted(tmp_path.glob("*.npz"))
    assert len(parts) == 5
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    parts[2].write_bytes(b"")
    parts[3].unlink()
    again = scan(noisy, FILTERS, store=tmp_path)
    assert again.report == whole.report
    assert again.kept.tolist() == whole.kept.tolist()
