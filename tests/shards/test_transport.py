"""Samples from workers are those that this process reads, whichever way they come, however long they are kept."""

import copy
import gc
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import stream as stream_module
from shards import transport
from shards.blocks import SPARE, Blocks, Room
from shards.decode import decode_image
from shards.errors import Stopped
from shards.sample import Region, Sample
from shards.sources.scenes import ScenesSource
from shards.stream import ShardStream
from shards.write import build_shards
from tests.shards.conftest import ListSource, png


class Growing(ScenesSource):
    """Scenes of growing size, so that places hold another number of bytes each time."""

    def __getitem__(self, index: int) -> Sample:
        return ScenesSource(index + 1, self.seed, self.split, 48 + index)[index]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transport") / "shards"
    build_shards(Growing(40, 0, "train"), folder, samples_per_shard=15)
    return folder


@pytest.fixture
def through_memory(monkeypatch) -> list[bool]:
    """Notes of each batch from workers whether it comes through shared memory."""
    seen: list[bool] = []
    plain = transport.Transport.unpack

    def unpack(self, part):
        seen.append(isinstance(part.batch, transport.Packed))
        return plain(self, part)

    monkeypatch.setattr(transport.Transport, "unpack", unpack)
    return seen


def _whole(sample: Sample) -> Sample:
    """A copy with bytes of its own."""
    return pickle.loads(pickle.dumps(sample))


@pytest.mark.parametrize("room", [1 << 18, 4400, 1])
def test_workers_hand_over_what_was_read(shards, monkeypatch, through_memory, room):
    """Batches that fit, that fit in part, and that never do; more of them than there are places."""
    for module in (transport, stream_module):
        monkeypatch.setattr(module, "SAMPLE_BYTES", room)
    source = Growing(40, 0, "train")
    for workers in (0, 2):
        views = []
        for batch in ShardStream(shards, 4, workers=workers).batches(30):
            assert [item.sample for item in batch] == [source[int(item.sample.key[-6:])] for item in batch]
            views += [isinstance(item.sample.image, memoryview) for item in batch]
        assert set(views) == {1 << 18: {True}, 4400: {True, False}, 1: {False}}[room]
    assert through_memory == [True] * 30


def test_order_and_identities_do_not_depend_on_workers(shards):
    alone, others = ([*ShardStream(shards, 4, workers=workers).batches(30)] for workers in (0, 2))
    for here, there in zip(alone, others, strict=True):
        assert [item.sample for item in here] == [item.sample for item in there]
        assert [(item.identity, item.epoch, item.position, item.seed) for item in here] == [
            (item.identity, item.epoch, item.position, item.seed) for item in there
        ]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_kept_does_not_change(shards, workers, seed):
    """Any samples, or views of their images alone, kept for any time, against copies made at once."""
    rng = random.Random(seed)
    kept: list[tuple[Any, bytes]] = []
    for batch in ShardStream(shards, 4, workers=workers).batches(60):
        kept += [
            (item.sample.image[5:] if rng.random() < 0.5 else item.sample.image, bytes(item.sample.image))
            for item in batch
            if rng.random() < 0.4
        ]
        del batch
        assert all(whole.endswith(bytes(image)) for image, whole in kept)
        kept = [pair for pair in kept if rng.random() < 0.8]


@pytest.mark.parametrize("workers", [0, 1])
def test_kept_samples_hold_few_places(shards, workers, through_memory):
    """One sample of each batch, for ever: the first keep their places, the others have bytes of their own."""
    kept = [batch[0].sample.image for batch in ShardStream(shards, 4, workers=workers).batches(30)]
    assert 1 <= sum(isinstance(image, memoryview) for image in kept) <= SPARE + 1
    assert all(through_memory)


@pytest.mark.parametrize("workers", [0, 1])
def test_dropped_batches_free_their_places(shards, workers):
    images = (batch[0].sample.image for batch in ShardStream(shards, 4, workers=workers).batches(40))
    assert all(isinstance(image, memoryview) and image.readonly for image in images)


@pytest.mark.parametrize("workers", [0, 2])
def test_without_address_space_samples_come_another_way(shards, monkeypatch, workers, through_memory):
    for module in (transport, stream_module):
        monkeypatch.setattr(module, "SAMPLE_BYTES", 1 << 50)
    source = Growing(40, 0, "train")
    for batch in ShardStream(shards, 4, workers=workers).batches(20):
        assert [item.sample for item in batch] == [source[int(item.sample.key[-6:])] for item in batch]
        assert all(type(item.sample.image) is bytes for item in batch)
    assert not any(through_memory)


@pytest.mark.parametrize("shared", [True, False])
def test_places_that_are_not_used_are_not_promised(shared):
    """The kernel's `nr` (no reservation): only what is touched counts as memory, so a large batch is not refused."""
    blocks = Blocks(4, 1 << 24, shared=shared)
    address = np.frombuffer(blocks.view(0), np.uint8).ctypes.data
    flags = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and first.replace("-", "").isalnum():
            start, end = (int(number, 16) for number in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            flags = line
    assert " nr" in flags


def test_a_place_is_free_when_its_last_view_is_gone():
    blocks = Blocks(2, 1 << 12, shared=False)
    assert [blocks.take(range(2)) for _ in range(3)] == [0, 1, None]
    room = Room(blocks.lend(0))
    first, second = (room.fill(100, lambda view: view.__setitem__(slice(0, 4), b"abcd") or 4) for _ in range(2))
    assert (bytes(first), bytes(second), room.offset(first), room.offset(second)) == (b"abcd", b"abcd", 0, 128)
    assert room.fill(1 << 12, len) is None
    array = np.frombuffer(first[1:], np.uint8)
    for held in ("room", "first", "second"):
        assert blocks.take(range(2)) is None, held
        if held == "room":
            del room
        elif held == "first":
            del first
        else:
            del second
    assert blocks.take(range(2)) is None
    assert bytes(array) == b"bcd"
    del array
    gc.collect()
    assert blocks.take(range(2)) == 0


class Regions(ScenesSource):
    """One scene whose regions have features."""

    def __getitem__(self, index: int) -> Sample:
        features = np.arange(600, dtype=np.float32).reshape(2, 300)
        regions = (Region((0, 0, 4, 4), "a"), Region((1, 1, 5, 5), "b"))
        return Sample("a", super().__getitem__(index).image, "jpg", ("one",), regions, region_features=features)


@pytest.mark.parametrize("workers", [0, 1])
def test_arrays_can_be_written_to(tmp_path, workers):
    build_shards(Regions(1, 0, "train"), tmp_path / "shards")
    kept = []
    for number, (item,) in enumerate(ShardStream(tmp_path / "shards", 1, workers=workers).batches(10)):
        found = item.sample.region_features
        assert np.array_equal(found, np.arange(600).reshape(2, 300))
        found[0, 0] = number
        kept.append(found)
    assert [found[0, 0] for found in kept] == [*range(10)]


class Own(Sample):
    """A source's own record."""


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_are_no_files(workers):
    """Of a source in memory: with no image, a short one, a long one, and of a class of its own."""
    images = [b"", png(1), bytes(range(256)) * 8]
    samples = [Sample(f"{n}", image, "png", ("a",), metadata={"n": n}) for n, image in enumerate(images)]
    samples.append(Own("own", images[2], "png", ("b",)))
    batches = [*ShardStream(ListSource(samples), 2, workers=workers).batches(6)]
    found = {item.sample.key: item.sample for batch in batches for item in batch}
    assert [found[sample.key] for sample in samples] == samples
    assert type(found["own"]) is Own


def test_views_of_images_are_as_good_as_their_bytes(shards):
    ((item,),) = ShardStream(shards, 1).batches(1)
    sample, whole = item.sample, _whole(item.sample)
    assert isinstance(sample.image, memoryview)
    assert type(whole.image) is bytes
    assert sample == whole == copy.deepcopy(sample)
    assert hash(sample.image) == hash(whole.image)
    assert np.array_equal(decode_image(sample.image, "jpg"), decode_image(whole.image, "jpg"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_cut_under_the_reader_is_damage_and_no_death(shards, tmp_path, workers):
    """Cut between two batches, while the reader has it open: the rest of it is replaced, each sample named."""
    build_shards(Growing(40, 0, "train"), tmp_path / "shards", samples_per_shard=15)
    stream = ShardStream(tmp_path / "shards", 2, workers=workers, damage_budget=1.0)
    batches = stream.batches(60)
    read = [_whole(item.sample) for item in next(batches)]
    os.truncate(tmp_path / "shards/shard-000001.tar", 3000)
    read += [_whole(item.sample) for batch in batches for item in batch]
    source = Growing(40, 0, "train")
    assert all(sample == source[int(sample.key[-6:])] for sample in read)
    assert {entry.shard for entry in stream.ledger} == {"shard-000001.tar"}
    assert {entry.reason.split(": ")[1].split(" after ")[0] for entry in stream.ledger} <= {
        "the image ends",
        "the record ends",
    }
    assert stream.counts.substituted == len(stream.ledger) >= 14


def test_a_killed_worker_is_one_sentence(shards):
    batches = ShardStream(shards, 4, workers=2).batches()
    next(batches)
    before = {process.pid for process in multiprocessing.active_children()}
    os.kill(max(before), signal.SIGKILL)
    with pytest.raises(Stopped, match=r"^a worker of the stream died, and the batches it was reading with it: .*\d+"):
        deque(islice(batches, 1000), maxlen=0)


FEW_FILES = """
import os, resource, sys
from shards.errors import Stopped
from shards.stream import ShardStream
stream = ShardStream(sys.argv[1], 4, workers=2)
opened = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 3, opened + 3))
try:
    next(stream.batches())
except Stopped as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux which files are open")
def test_workers_that_cannot_start_are_one_sentence(shards):
    done = subprocess.run([sys.executable, "-c", FEW_FILES, shards], capture_output=True, text=True, check=True)
    assert done.stdout == "`workers` (=2) could not be started: Too many open files\n"


ENDLESS = """
import multiprocessing, sys
from shards.stream import ShardStream
kept = []
for number, batch in enumerate(ShardStream(sys.argv[1], 4, workers=2).batches()):
    kept = [*kept[-3:], batch]
    if number == 20:
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
"""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes live")
def test_nothing_is_left_of_a_killed_consumer(shards):
    """Its workers end by themselves, and no segment of shared memory has a name that would outlive them."""
    before = {*Path("/dev/shm").iterdir()}
    with subprocess.Popen([sys.executable, "-c", ENDLESS, shards], stdout=subprocess.PIPE, text=True) as consumer:
        assert consumer.stdout is not None
        workers = [int(pid) for pid in consumer.stdout.readline().split()]
        assert len(workers) == 2
        maps = Path(f"/proc/{consumer.pid}/maps").read_text()
        consumer.kill()
    assert "/dev/zero (deleted)" in maps  # Linux's name for shared memory without one
    deadline = time.monotonic() + 120
    while any(map(_alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert {*Path("/dev/shm").iterdir()} <= before
