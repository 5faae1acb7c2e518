"""The cache of a node: one download for all processes, within its limit, and never half a file."""

import logging
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shards.cache import FileCache
from shards.errors import DamagedSample, UserError
from shards.reader import ShardSet
from shards.remote import Patience
from shards.stream import ShardStream, StreamedSample
from tests.shards.server import Server, serving

PATIENT = Patience(timeout=30.0, tries=3, total=120.0, first_wait=0.01)
LIMIT = 10**9


@pytest.fixture
def server(shard_folder: Path) -> Iterator[Server]:
    with serving(shard_folder) as running:
        yield running


def tars(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.tar")}


def held(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if not path.name.startswith("lock-"))


def read_all(url: str, cache: Path, limit: int = LIMIT) -> list[str]:
    shards = ShardSet(url, FileCache(cache, limit), PATIENT)
    return [shards[i].key for i in range(len(shards))]


def test_four_processes_cost_one_download(server: Server, shard_folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        counts = pool.starmap(read_all, [(server.url, tmp_path / "cache")] * 4, chunksize=1)
    assert [len(keys) for keys in counts] == [50] * 4
    sizes = tars(shard_folder)
    assert {name: server.sent[name] for name in sizes} == sizes
    indices = {path.name: path.stat().st_size for path in shard_folder.glob("*.parquet")}
    assert {name: server.sent[name] for name in indices} == indices
    assert len(held(tmp_path / "cache")) == len(sizes) + len(indices)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cached_stream_is_that_of_the_folder(
    workers: int, server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    def key(item: StreamedSample) -> tuple[int, str]:
        return item.position, item.sample.key

    reference = list(ShardStream(shard_folder, 8, transform=key).batches(19))
    shards = ShardSet(server.url, FileCache(tmp_path / "cache", LIMIT), PATIENT)
    assert list(ShardStream(shards, 8, transform=key, workers=workers).batches(19)) == reference
    assert all(server.sent[name] == size for name, size in tars(shard_folder).items())


def test_equal_names_at_other_addresses_are_other_files(shard_folder: Path, tmp_path: Path, make_source: Any) -> None:
    from shards.write import build_shards

    build_shards(make_source(20), tmp_path / "other", samples_per_shard=8)
    with serving(shard_folder) as one, serving(tmp_path / "other") as two:
        assert len(read_all(one.url, tmp_path / "cache")) == 50
        assert len(read_all(two.url, tmp_path / "cache")) == 20


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 300)
    fetched: list[str] = []

    def keep(name: str, size: int) -> int | None:
        def fetch(file: Any) -> str:
            fetched.append(name)
            file.write(bytes(size))
            return "digest"

        descriptor = cache.open(name, "digest", size, fetch)
        if descriptor is not None:
            assert len(os.pread(descriptor, 1000, 0)) == size
            os.close(descriptor)
            time.sleep(0.02)  # the clock of the file system is coarse
        return descriptor

    for name in "abc":
        keep(name, 100)
    keep("a", 100)
    assert fetched == ["a", "b", "c"]
    keep("d", 100)  # in the place of b
    keep("a", 100)
    keep("c", 100)
    assert fetched == ["a", "b", "c", "d"]
    keep("b", 100)  # in the place of d
    keep("e", 200)  # in the place of a and c
    keep("b", 100)
    assert fetched == ["a", "b", "c", "d", "b", "e"]
    assert sum(path.stat().st_size for path in held(tmp_path)) == 300
    assert keep("f", 301) is None
    assert "f" not in fetched


def test_an_evicted_file_is_fetched_again_under_a_live_reader(
    server: Server, shard_folder: Path, tmp_path: Path
) -> None:
    shards = ShardSet(server.url, FileCache(tmp_path / "cache", LIMIT), PATIENT)
    first = shards[3]
    for path in held(tmp_path / "cache"):
        path.unlink()
    assert shards[3] == first
    assert server.sent["shard-000000.tar"] == 2 * tars(shard_folder)["shard-000000.tar"]


def test_a_limit_too_small_for_a_window_is_refused(server: Server, shard_folder: Path, tmp_path: Path) -> None:
    total = sum(tars(shard_folder).values())
    with pytest.raises(UserError, match=rf"^`cache_bytes` \(={total - 1}\) must be at least {total}, the 7 largest"):
        ShardSet(server.url, FileCache(tmp_path / "cache", total - 1), PATIENT)
    with pytest.raises(UserError, match=r"^`cache_bytes` \(=0\) must be at least 1$"):
        FileCache(tmp_path, 0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^`cache` \(=.*file\) cannot be written: file exists$"):
        FileCache(tmp_path / "file", 1)


def hold(url: str, cache: Path) -> None:
    ShardSet(url, FileCache(cache, LIMIT), PATIENT)[0]


def test_a_killed_download_leaves_nothing_that_is_read(server: Server, shard_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server.faults["shard-000000.tar"] = ["stall"]
    process = multiprocessing.get_context("fork").Process(target=hold, args=(server.url, cache))
    process.start()
    deadline = time.monotonic() + 60
    while not server.requests["shard-000000.tar"] and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert len(list(cache.glob(".*.partial"))) == 1
    assert read_all(server.url, cache) == [f"key-{i:04d}" for i in range(50)]
    assert list(cache.glob(".*")) == []


def test_remains_of_others_are_removed_and_those_being_written_are_not(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, LIMIT)
    remains = tmp_path / f".{'0' * 64}.partial"
    remains.touch()

    def fetch(file: Any) -> str:
        FileCache(tmp_path, LIMIT)
        assert not remains.exists()
        assert len(list(tmp_path.glob(".*.partial"))) == 1
        file.write(b"12345")
        return "digest"

    descriptor = cache.open("address", "digest", 5, fetch)
    assert descriptor is not None
    assert os.read(descriptor, 9) == b"12345"
    os.close(descriptor)


def test_a_damaged_shard_is_read_sample_by_sample(
    server: Server, shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tar = shard_folder / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[520] ^= 1
    tar.write_bytes(content)
    near = ShardSet(shard_folder)
    with caplog.at_level(logging.WARNING, logger="shards"):
        for _ in range(2):  # as two processes would
            far = ShardSet(server.url, FileCache(tmp_path / "cache", LIMIT), PATIENT)
            for i in range(50):
                if i == 8:
                    with pytest.raises(DamagedSample, match="does not match its checksum"):
                        far[i]
                else:
                    assert far[i] == near[i]
    (record,) = caplog.records
    assert "shard-000001.tar does not match its digest" in record.getMessage()
    assert server.sent[tar.name] < 4 * len(content)


def test_a_shard_cut_short_on_the_server_is_a_counted_error(server: Server, shard_folder: Path, tmp_path: Path) -> None:
    tar = shard_folder / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    shards = ShardSet(server.url, FileCache(tmp_path / "cache", LIMIT), PATIENT)
    with pytest.raises(
        DamagedSample, match=r"shard-000001.tar cannot be read after 3 tries .*: the server sent 3000 bytes"
    ):
        shards[9]
    assert shards[0] == ShardSet(shard_folder)[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_leaves_no_half_file_and_the_run_goes_on(
    server: Server, shard_folder: Path, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    near, far = ShardSet(shard_folder), ShardSet(server.url, FileCache(small_disk, LIMIT), PATIENT)
    assert sum(tars(shard_folder).values()) > 64 * 1024
    with caplog.at_level(logging.WARNING, logger="shards"):
        assert [far[i] for i in range(50)] == [near[i] for i in range(50)]
    assert [record.getMessage() for record in caplog.records] == [
        f"{small_disk} takes no more: no space left on device; shards are read from where they lie"
    ]
    sizes = {*tars(shard_folder).values(), *(path.stat().st_size for path in shard_folder.glob("*.parquet"))}
    assert {path.stat().st_size for path in held(small_disk)} <= sizes
    assert list(small_disk.glob(".*")) == []
