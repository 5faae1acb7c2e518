"""Building: whole or not at all, resumable after a kill, byte-identical, readable by others."""

import dataclasses
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shards.errors import UserError
from shards.manifest import read_manifest, to_json
from shards.reader import ShardSet
from shards.sample import Region, Relation, Sample
from shards.sources.scenes import ScenesSource
from shards.verify import verify
from shards.write import build_shards
from tests.shards.folders import contents


def test_round_trip(tmp_path: Path, make_source: Any) -> None:
    source = make_source(9)
    region = Region((0.0, 1.5, 3.0, 4.0), "star", ("red", "small"), 0.5)
    rich = Sample(
        key="rich",
        image=source[0].image,
        extension="png",
        captions=("ein Stern ★", "two\nlines"),
        regions=(region, region),
        relations=(Relation(0, "left of", 1),),
        tags=("star", "red"),
        metadata={"cocoid": 1, "sentids": [1, 2], "none": None},
    )
    source.samples.append(rich)
    manifest = build_shards(source, tmp_path / "out", samples_per_shard=4)
    back = ShardSet(tmp_path / "out")
    assert [back[i] for i in range(10)] == source.samples
    assert [shard.samples for shard in manifest.shards] == [4, 4, 2]
    assert read_manifest(tmp_path / "out") == manifest


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_it(shard_folder: Path, make_source: Any) -> None:
    import webdataset as wds

    urls = [str(path) for path in sorted(shard_folder.glob("*.tar"))]
    read = list(wds.WebDataset(urls, shardshuffle=False))
    gc.collect()  # It leaves its files open, which is a warning, which must fall into this test.
    expected = make_source(50).samples
    assert [item["__key__"] for item in read] == [sample.key for sample in expected]
    assert [item["png"] for item in read] == [sample.image for sample in expected]
    assert [item["txt"].decode() for item in read] == [sample.captions[0] for sample in expected]


def test_rebuild_is_byte_identical(tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_shards(ScenesSource(30, 0, "train"), tmp_path / name, samples_per_shard=8)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_progress_counts_samples(tmp_path: Path, make_source: Any) -> None:
    class Counter:
        count = 0

        def advance(self, n: int = 1) -> None:
            self.count += n

    counter = Counter()
    build_shards(make_source(10), tmp_path, samples_per_shard=4, progress=counter)
    assert counter.count == 10


STUCK_BUILD = """
import sys, time
from pathlib import Path
from shards.sources.scenes import ScenesSource
from shards.write import build_shards

class Stuck(ScenesSource):
    def __getitem__(self, index):
        if index == int(sys.argv[2]):
            print("stuck", flush=True)
            time.sleep(600)
        return super().__getitem__(index)

build_shards(Stuck(60, 0, "train"), Path(sys.argv[1]), samples_per_shard=10)
"""


@pytest.mark.parametrize("at_sample", [0, 25, 59])
def test_killed_and_resumed_equals_undisturbed(at_sample: int, tmp_path: Path) -> None:
    build_shards(ScenesSource(60, 0, "train"), tmp_path / "whole", samples_per_shard=10)
    out = tmp_path / "killed"
    command = [sys.executable, "-c", STUCK_BUILD, str(out), str(at_sample)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"stuck\n"
        os.kill(process.pid, signal.SIGKILL)
    assert partials(out)
    whole = contents(tmp_path / "whole")
    assert all(path.read_bytes() == whole[path.name] for path in out.glob("*.tar"))
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.index.parquet")}
    assert len(kept) == at_sample // 10
    assert "manifest.json" not in contents(out)

    build_shards(ScenesSource(60, 0, "train"), out, samples_per_shard=10, existing="resume")
    assert contents(out) == whole
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


def partials(folder: Path) -> list[Path]:
    return list(folder.glob(".shard-*.tar.partial"))


def test_resume_rebuilds_a_shard_that_changed(shard_folder: Path, make_source: Any) -> None:
    whole = contents(shard_folder)
    tar = shard_folder / "shard-000002.tar"
    tar.write_bytes(tar.read_bytes()[:-700])
    (shard_folder / "shard-000004.index.parquet").unlink()
    build_shards(make_source(50), shard_folder, samples_per_shard=8, existing="resume")
    assert contents(shard_folder) == whole


def test_overwrite_replaces_only_its_own(shard_folder: Path, make_source: Any) -> None:
    (shard_folder / "notes.md").write_text("mine")
    build_shards(make_source(3), shard_folder, existing="overwrite")
    assert sorted(contents(shard_folder)) == [
        "manifest.json",
        "notes.md",
        "shard-000000.index.parquet",
        "shard-000000.tar",
    ]


def test_overwrite_killed_between_plan_and_removal(shard_folder: Path, make_source: Any, tmp_path: Path) -> None:
    """The old shards are whole and of the right size, but of another plan: a resume must not keep them."""
    other = make_source(50)
    other.samples = [dataclasses.replace(sample, captions=("new",)) for sample in other.samples]
    other._fingerprint = "e" * 64
    build_shards(other, tmp_path / "whole", samples_per_shard=8)
    plan = read_manifest(tmp_path / "whole").plan
    (shard_folder / ".build.json").write_bytes(to_json(plan))
    (shard_folder / "manifest.json").unlink()
    build_shards(other, shard_folder, samples_per_shard=8, existing="resume")
    assert contents(shard_folder) == contents(tmp_path / "whole")


def test_refuses_a_folder_in_use(shard_folder: Path, make_source: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a finished build: give --resume to go on with it or --overwrite"):
        build_shards(make_source(50), shard_folder)
    (shard_folder / "manifest.json").rename(shard_folder / ".gone")
    with pytest.raises(UserError, match=r"must be new, empty or hold a build of shards, but it holds \.gone"):
        build_shards(make_source(50), shard_folder, existing="overwrite")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"must be a folder"):
        build_shards(make_source(50), tmp_path / "file")


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"samples_per_shard": 9}, r"`samples_per_shard` \(=8\), not 9"),
        ({"settings": {"seed": 2}}, r"`seed` \(=None\), not 2"),
    ],
)
def test_resume_under_another_plan_is_refused(
    changed: dict[str, Any], difference: str, shard_folder: Path, make_source: Any
) -> None:
    arguments = {"samples_per_shard": 8, "existing": "resume"} | changed
    with pytest.raises(UserError, match=f"holds a build with {difference}: use the same settings or --overwrite"):
        build_shards(make_source(50), shard_folder, **arguments)


def test_resume_with_another_source_is_refused(shard_folder: Path, make_source: Any) -> None:
    other = make_source(50)
    other._fingerprint = "e" * 64
    with pytest.raises(UserError, match=r"`fingerprint` \(=ffff.*\), not eeee"):
        build_shards(other, shard_folder, samples_per_shard=8, existing="resume")


def test_two_builds_cannot_share_a_folder(tmp_path: Path, make_source: Any) -> None:
    class Nested(type(make_source(1))):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Sample:
            build_shards(make_source(1), tmp_path / "out", existing="overwrite")
            raise AssertionError

    with pytest.raises(UserError, match="is being written by another build"):
        build_shards(Nested(make_source(1).samples), tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("key-0001", r"`key` \(=key-0001\) of sample 3 must be unique"),
        ("a.b", r"`key` \(=a.b\) of sample 3 must have 1 to 90 bytes and no dots or slashes"),
        ("../a", r"`key` \(=../a\) of sample 3 must have 1 to 90 bytes and no dots or slashes"),
        ("😀" * 23, r"of sample 3 must have 1 to 90 bytes and no dots or slashes"),
    ],
)
def test_refused_keys_leave_no_tar(key: str, message: str, tmp_path: Path, make_source: Any) -> None:
    source = make_source(5)
    source.samples[3] = dataclasses.replace(source.samples[3], key=key)
    with pytest.raises(UserError, match=message):
        build_shards(source, tmp_path)
    assert list(contents(tmp_path)) == [".build.json"]


def test_odd_keys_are_kept(tmp_path: Path, make_source: Any) -> None:
    """Emoji, spaces, keys that differ in case alone, the longest."""
    source = make_source(5)
    keys = ["😀" * 22, "a b", "Key", "key", "k" * 90]
    source.samples = [dataclasses.replace(s, key=key) for s, key in zip(source.samples, keys, strict=True)]
    build_shards(source, tmp_path)
    back = ShardSet(tmp_path)
    assert [back[i] for i in range(5)] == source.samples
    assert verify(tmp_path).ok


def test_empty_source_and_empty_shards_are_refused(tmp_path: Path, make_source: Any) -> None:
    with pytest.raises(UserError, match=r"`source` \(=list\) must hold at least one sample"):
        build_shards(make_source(0), tmp_path / "out")
    with pytest.raises(UserError, match=r"`samples_per_shard` \(=0\) must be at least 1"):
        build_shards(make_source(1), tmp_path / "out", samples_per_shard=0)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_gives_one_sentence_and_no_partial_tar(small_disk: Path) -> None:
    with pytest.raises(UserError, match=r"`out` \(=.*\) cannot be written: no space left on device; free some space"):
        build_shards(ScenesSource(100, 0, "train"), small_disk, samples_per_shard=10)
    assert not partials(small_disk)
    for tar in small_disk.glob("*.tar"):
        assert tar.stat().st_size > 0
        assert tar.read_bytes()[-1024:] == bytes(1024)
    assert not (small_disk / "manifest.json").exists()
