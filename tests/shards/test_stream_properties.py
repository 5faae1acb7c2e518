"""What the stream promises for any corpus, ranks, workers and restarts, also with mixtures, damage and odd shards."""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import DamagedSample
from shards.manifest import Manifest, ShardEntry, index_bytes, index_name, read_manifest, to_json
from shards.reader import ShardSet
from shards.sample import Identity, Sample
from shards.stream import ShardStream, StreamedSample
from shards.write import build_shards

Sequence = list[list[Any]]


def key(item: StreamedSample) -> tuple[int, int, str]:
    return item.epoch, item.position, item.sample.key


def parts_of(streams: list[ShardStream[Any]], count: int) -> Sequence:
    """Global batches, from as many streams as there are ranks; fails if one of them ends before the others."""
    parts = zip(*(stream.batches(count) for stream in streams), strict=True)
    return [list(itertools.chain(*ranks)) for ranks in parts]


def ranks(sources: Any, batch: int, world: int, **options: Any) -> list[ShardStream[Any]]:
    return [ShardStream(sources, batch, rank=r, world=world, transform=key, **options) for r in range(world)]


class Counted:
    """Samples that are only numbers, in shards of given sizes, some of them damaged."""

    def __init__(self, name: str, sizes: list[int], damaged: frozenset[int] = frozenset()) -> None:
        self.name, self.shard_sizes, self.damaged = name, sizes, damaged

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def __getitem__(self, index: int) -> Sample:
        if index in self.damaged:
            raise DamagedSample("gone")
        return Sample(f"{self.name}-{index}", b"", "png", ("",))

    def identity(self, index: int) -> Identity:
        return Identity(self.name, index)

    def place(self, index: int) -> tuple[str, int]:
        return self.name, index

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.name}{self.shard_sizes}".encode()).hexdigest()


SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(any)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SIZES, st.integers(1, 6), st.sampled_from([1, 2, 3, 5]), st.integers(0, 2**64 - 1))
def test_any_corpus_gives_every_sample_once_per_epoch_to_any_number_of_ranks(
    sizes: list[int], share: int, world: int, seed: int
) -> None:
    source, batch = Counted("a", sizes), share * world
    count = -(-3 * len(source) // batch)
    whole = parts_of(ranks(source, batch, 1, seed=seed), count)
    assert parts_of(ranks(source, batch, world, seed=seed), count) == whole
    sequence = list(itertools.chain(*whole))
    for epoch in range(3):
        lap = sequence[epoch * len(source) : (epoch + 1) * len(source)]
        assert sorted(name for _, _, name in lap) == sorted(f"a-{i}" for i in range(len(source)))
        assert {number for number, _, _ in lap} == {epoch}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_mixture_goes_on_anywhere_at_any_world_size(data: st.DataObject) -> None:
    sources = []
    for name in data.draw(st.sampled_from(["a", "ab", "abc"])):
        sizes = data.draw(SIZES)
        total = sum(sizes)
        damaged = data.draw(st.frozensets(st.integers(0, total - 1), max_size=(total - 1) // 2))
        sources.append((Counted(name, sizes, damaged), data.draw(st.integers(1, 9))))
    first, second = data.draw(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4, 8])))
    stop = data.draw(st.integers(0, 20))
    quarantine = data.draw(st.frozensets(st.integers(0, 40), max_size=5))
    options: dict[str, Any] = {"damage_budget": 1, "damaged_in_a_row": 10**6, "quarantine": quarantine}
    whole = parts_of(ranks(sources, 8, 1, **options), 30)
    before = ranks(sources, 8, first, **options)
    read = parts_of(before, stop)
    after = ranks(sources, 8, second, **options)
    for stream in after:
        stream.load_state_dict(before[-1].state_dict())
    assert read + parts_of(after, 30 - stop) == whole


def sharded(folder: Path, count: int, per_shard: int, make_source: Any) -> Path:
    build_shards(make_source(count), folder, samples_per_shard=per_shard)
    return folder


@pytest.mark.parametrize(
    ("count", "per_shard", "batch"),
    [
        (10, 5, 8),  # two shards for four ranks of two workers
        (40, 1000, 8),  # one giant shard
        (3, 2, 8),  # less than a batch
        (1, 1, 4),  # less than a rank's part of one
    ],
)
@pytest.mark.parametrize(("world", "workers"), [(4, 0), (4, 2)])
def test_odd_corpora_are_defined(
    count: int, per_shard: int, batch: int, world: int, workers: int, tmp_path: Path, make_source: Any
) -> None:
    folder = sharded(tmp_path / "set", count, per_shard, make_source)
    whole = parts_of(ranks(folder, batch, 1), 6)
    assert parts_of(ranks(folder, batch, world, workers=workers), 6) == whole
    sequence = list(itertools.chain(*whole))
    for lap in range(len(sequence) // count):
        names = [name for _, _, name in sequence[lap * count : (lap + 1) * count]]
        assert sorted(names) == [f"key-{i:04d}" for i in range(count)]


def with_empty_shard(folder: Path, at: int) -> None:
    """Puts a shard without samples into a finished build."""
    manifest = read_manifest(folder)
    tar, digest = bytes(1024), hashlib.sha256(bytes(1024)).hexdigest()
    index = index_bytes([], {"tar_sha256": digest})
    (folder / "empty.tar").write_bytes(tar)
    (folder / index_name("empty.tar")).write_bytes(index)
    entry = ShardEntry(
        name="empty.tar", samples=0, bytes=1024, sha256=digest, index_sha256=hashlib.sha256(index).hexdigest()
    )
    shards = (*manifest.shards[:at], entry, *manifest.shards[at:])
    (folder / "manifest.json").write_bytes(to_json(Manifest(plan=manifest.plan, shards=shards)))


@pytest.mark.parametrize("at", [0, 3, 7])
def test_an_empty_shard_holds_nothing(at: int, shard_folder: Path, make_source: Any) -> None:
    with_empty_shard(shard_folder, at)
    shards = ShardSet(shard_folder)
    assert [shards[i] for i in range(50)] == make_source(50).samples
    sequence = list(itertools.chain(*parts_of(ranks(shard_folder, 10, 2), 10)))
    for lap in (sequence[:50], sequence[50:]):
        assert sorted(name for _, _, name in lap) == [f"key-{i:04d}" for i in range(50)]


def test_fresh_interpreters_with_other_hash_seeds_agree(shard_folder: Path) -> None:
    program = (
        "import sys; from shards.stream import ShardStream; from tests.shards.test_stream_properties import Counted\n"
        "stream = ShardStream([(sys.argv[1], 2), (Counted('a', [3, 4]), 0.5)], 8, quarantine=[3, 1])\n"
        "print([(item.identity, item.epoch, item.rng().random()) for batch in stream.batches(9) for item in batch])\n"
        "print(stream.state_dict())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(shard_folder)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
        )
        for seed in ("1", "2")
    ]
    one, other = (process.communicate()[0] for process in processes)
    assert len(one) > 1000
    assert one == other


def test_damaged_shards_resume_at_another_world_size_and_worker_count(shard_folder: Path) -> None:
    for number in (1, 4):
        tar = shard_folder / f"shard-{number:06d}.tar"
        content = tar.read_bytes()
        tar.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    (shard_folder / "shard-000005.tar").unlink()
    options = {"damage_budget": 0.6}
    whole = parts_of(ranks(shard_folder, 8, 1, **options), 12)
    before = ranks(shard_folder, 8, 2, workers=1, **options)
    read = parts_of(before, 5)
    after = ranks(shard_folder, 8, 4, **options)
    for stream in after:
        stream.load_state_dict(before[0].state_dict())
    assert read + parts_of(after, 7) == whole
    ledgers = [entry for stream in before + after for entry in stream.ledger]
    assert {entry.shard for entry in ledgers} == {f"shard-{n:06d}.tar" for n in (1, 4, 5)}
    assert len({(entry.position, entry.index) for entry in ledgers}) == len(ledgers)


@pytest.mark.parametrize("what", ["tar", "both", "index"])
def test_a_shard_replaced_under_a_live_index_is_refused(
    what: str, shard_folder: Path, tmp_path: Path, make_source: Any
) -> None:
    """By one of the same size and names, with other pictures."""
    other = make_source(50)
    other.samples = [replace(s, image=t.image) for s, t in zip(other.samples, other.samples[::-1], strict=True)]
    build_shards(other, tmp_path / "other", samples_per_shard=8)
    names = {"tar": ["tar"], "index": ["index.parquet"], "both": ["tar", "index.parquet"]}[what]
    for name in names:
        shutil.copy(tmp_path / f"other/shard-000002.{name}", shard_folder / f"shard-000002.{name}")
    shards = ShardSet(shard_folder)
    reason = "does not match its checksum" if what == "tar" else "its index is that of another shard"
    for index in range(16, 24):
        with pytest.raises(DamagedSample, match=reason):
            shards[index]
    with pytest.raises(DamagedSample, match=r"samples are damaged, more than `damage_budget`"):
        list(ShardStream(shard_folder, 10))
    stream: ShardStream[Any] = ShardStream(shard_folder, 10, transform=key, damage_budget=0.2)
    assert not {f"key-{i:04d}" for i in range(16, 24)} & {name for batch in stream for _, _, name in batch}
