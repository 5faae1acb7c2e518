"""Remote shards against a real server that misbehaves: the right bytes, or a counted error, in bounded time."""

import itertools
import logging
import multiprocessing
import pickle
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from shards.errors import DamagedSample, Stopped, UserError
from shards.reader import ShardSet
from shards.remote import NotServed, Patience, RemoteFolder
from shards.stream import ShardStream, StreamedSample
from tests.shards.server import Server, serving

QUICK = Patience(timeout=30.0, tries=4, total=120.0, first_wait=0.01)
TAR = "shard-000001.tar"
INDEX = "shard-000001.index.parquet"


@pytest.fixture
def server(shard_folder: Path) -> Iterator[Server]:
    with serving(shard_folder) as running:
        yield running


def key(item: StreamedSample) -> tuple[int, str]:
    return item.position, item.sample.key


def test_samples_over_http_are_those_of_the_folder(server: Server, shard_folder: Path) -> None:
    local, remote = ShardSet(shard_folder), ShardSet(server.url + "/", patience=QUICK)
    assert remote.fingerprint() == local.fingerprint()
    assert [remote[i] for i in range(50)] == [local[i] for i in range(50)]
    tar = server.folder / TAR
    assert server.sent[TAR] < tar.stat().st_size
    assert server.requests["manifest.json"] == 1
    assert server.requests[INDEX] == 1
    assert pickle.loads(pickle.dumps(remote))[20] == local[20]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_over_http_is_that_of_the_folder(workers: int, server: Server, shard_folder: Path) -> None:
    reference = list(ShardStream(shard_folder, 8, transform=key).batches(9))
    remote = ShardSet(server.url, patience=QUICK)
    assert list(ShardStream(remote, 8, transform=key, workers=workers).batches(9)) == reference


def test_both_sides_of_a_fork_read(server: Server, shard_folder: Path) -> None:
    local, remote = ShardSet(shard_folder), ShardSet(server.url, patience=QUICK)
    assert remote[0] == local[0]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(remote.__getitem__, range(50)) == [local[i] for i in range(50)]
    assert remote[30] == local[30]


@pytest.mark.parametrize("fault", ["503", "500", "429", "408", "html", "short", "cut"])
@pytest.mark.parametrize("file", ["manifest.json", INDEX, TAR])
def test_passing_trouble_changes_nothing(fault: str, file: str, server: Server, shard_folder: Path) -> None:
    server.faults[file] = [fault, fault]
    assert ShardSet(server.url, patience=QUICK)[9] == ShardSet(shard_folder)[9]
    assert server.requests[file] == 3


@pytest.mark.parametrize("fault", ["stall", "drip"])
@pytest.mark.parametrize("file", ["manifest.json", TAR])
def test_a_server_that_falls_asleep_is_asked_again(fault: str, file: str, server: Server, shard_folder: Path) -> None:
    server.faults[file] = [fault]
    remote = ShardSet(server.url, patience=Patience(timeout=0.5, tries=20, total=60.0, first_wait=0.01))
    assert remote[9] == ShardSet(shard_folder)[9]
    assert server.requests[file] >= 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("503", "status 503"),
        ("html", r"the server sent 55 bytes of HTML instead of \d+"),
        ("short", r"the server sent \d+ bytes instead of \d+"),
        ("stall", "no answer in time"),
        ("drip", "no answer in time"),
        ("cut", r"\S+"),
    ],
)
def test_lasting_trouble_is_a_counted_error_in_bounded_time(fault: str, reason: str, server: Server) -> None:
    remote = ShardSet(server.url, patience=QUICK)
    remote[8]
    server.requests.clear()
    server.always[TAR] = fault
    remote.files.folder.patience = Patience(timeout=0.3, tries=3, total=30.0, first_wait=0.01)
    start = time.monotonic()
    with pytest.raises(
        DamagedSample, match=rf"^{TAR}, sample 1: \S+{TAR} cannot be read after 3 tries in \d+ s: {reason}"
    ):
        remote[9]
    with pytest.raises(DamagedSample, match=rf"^{TAR}, sample 2: \S+{TAR} cannot be read after 3 tries"):
        remote[10]
    assert time.monotonic() - start < 20
    assert server.requests[TAR] == 3  # after which the shard was given up for a while


def test_what_is_clear_is_not_tried_again(server: Server) -> None:
    (server.folder / TAR).unlink()
    server.always[INDEX.replace("1", "2")] = "403"
    remote = ShardSet(server.url, patience=QUICK)
    with pytest.raises(DamagedSample, match=rf"{TAR} cannot be read: not found$"):
        remote[9]
    with pytest.raises(DamagedSample, match=r"index.parquet cannot be read: status 403$"):
        remote[17]
    assert (server.requests[TAR], server.requests[INDEX.replace("1", "2")]) == (1, 1)


def test_a_shard_that_is_not_served_is_replaced_and_counted(server: Server, shard_folder: Path) -> None:
    sound = [name for batch in ShardStream(shard_folder, 5, transform=key) for _, name in batch]
    server.always[TAR] = "404"
    stream = ShardStream(ShardSet(server.url, patience=QUICK), 5, transform=key, damage_budget=0.2)
    read = [name for batch in stream for _, name in batch]
    lost = {f"key-{i:04d}" for i in range(8, 16)}
    assert [name for name in read if name not in lost] == read
    assert [a for a, b in zip(read, sound, strict=True) if b not in lost] == [b for b in sound if b not in lost]
    assert {entry.ordinal for entry in stream.ledger} == set(range(8))
    assert stream.counts.read == 50 + stream.counts.substituted


def test_retry_after_is_honoured(server: Server) -> None:
    remote = RemoteFolder(server.url, Patience(timeout=5, tries=2, total=30.0, first_wait=20.0))
    server.faults["manifest.json"] = ["503"]
    server.retry_after = "1"
    start = time.monotonic()
    remote.read("manifest.json", len)
    assert 1 <= time.monotonic() - start < 15  # neither at once nor after our own wait


def test_retry_after_as_a_date(server: Server) -> None:
    remote = RemoteFolder(server.url, Patience(timeout=5, tries=2, total=30.0, first_wait=20.0))
    server.faults["manifest.json"] = ["429"]
    server.retry_after = formatdate(time.time() + 2, usegmt=True)
    start = time.monotonic()
    remote.read("manifest.json", len)
    assert 0.9 <= time.monotonic() - start < 15  # the date has whole seconds


def test_a_wait_longer_than_patience_is_not_begun(server: Server) -> None:
    remote = RemoteFolder(server.url, Patience(timeout=5, tries=5, total=10.0))
    server.always["manifest.json"] = "503"
    server.retry_after = "3600"
    start = time.monotonic()
    with pytest.raises(NotServed, match=r"cannot be read: status 503$"):
        remote.read("manifest.json", len)
    assert time.monotonic() - start < 9
    assert server.requests["manifest.json"] == 1


def test_a_server_without_ranges_gives_the_right_bytes(
    server: Server, shard_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.ranges = False
    local, remote = ShardSet(shard_folder), ShardSet(server.url, patience=QUICK)
    with caplog.at_level(logging.WARNING, logger="shards"):
        assert [remote[i] for i in range(50)] == [local[i] for i in range(50)]
    assert [record.getMessage() for record in caplog.records] == [
        f"{server.url} sends whole files when asked for a part: reading is slow without a cache"
    ]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_rank_fetches_its_share_of_the_bytes(world: int, server: Server) -> None:
    tars = {path.name: path.stat().st_size for path in server.folder.glob("*.tar")}
    shares = []
    for rank in range(world):
        server.sent.clear()
        stream = ShardStream(ShardSet(server.url, patience=QUICK), 4, rank=rank, world=world)
        list(stream.batches(25))  # two epochs
        shares.append(sum(server.sent[name] for name in tars))
    # The text member and the headers of each sample are not read.
    assert sum(shares) < 2 * sum(tars.values())
    assert max(shares) < 1.1 * sum(shares) / world


def test_what_cannot_be_opened_is_said_in_one_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^`shards` \(=\S+/absent\) has no manifest.json$"):
        ShardSet(f"{server.url}/absent", patience=QUICK)
    with pytest.raises(UserError, match=r"^`place` \(=gopher://x\) must begin with http, https, s3, hf or another"):
        ShardSet("gopher://x")
    server.always["manifest.json"] = "html"
    with pytest.raises(
        Stopped, match=r"^\S+/manifest.json cannot be read after 4 tries in \d+ s: .* 55 bytes of HTML: "
    ):
        ShardSet(server.url, patience=QUICK)


def test_nobody_listening_ends_in_bounded_time() -> None:
    with serving(Path()) as closed:
        url = closed.url
    with pytest.raises(Stopped, match=r"cannot be read after 4 tries"):
        ShardSet(url, patience=QUICK)


def test_damage_is_the_same_near_and_far(server: Server, shard_folder: Path) -> None:
    tar = shard_folder / TAR
    content = bytearray(tar.read_bytes())
    content[700:6000] = bytes(5300)
    tar.write_bytes(content)
    streams: list[Any] = [
        ShardStream(source, 5, transform=key, damage_budget=1)
        for source in (ShardSet(shard_folder), ShardSet(server.url, patience=QUICK))
    ]
    near, far = (list(itertools.chain(*stream)) for stream in streams)
    assert near == far
    assert [(e.position, e.ordinal, e.reason) for e in streams[0].ledger] == [
        (e.position, e.ordinal, e.reason) for e in streams[1].ledger
    ]
    assert streams[0].ledger


def test_requests_of_a_batch_overlap(server: Server, shard_folder: Path) -> None:
    stream = ShardStream(ShardSet(server.url, patience=QUICK), 16, transform=key)
    server.delay = 0.1
    (batch,) = stream.batches(1)
    assert batch == next(ShardStream(shard_folder, 16, transform=key).batches(1))
    assert server.most >= 4
