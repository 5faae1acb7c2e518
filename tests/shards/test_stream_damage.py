"""Damage is replaced, counted and limited; batches that do harm are passed over."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import DamagedSample, FilteredSample
from shards.stream import Damage, ShardStream, StreamedSample
from tests.shards.streams import damage, global_batches, position_and_key


def test_damaged_sample_is_replaced_by_the_next_and_recorded(shard_folder: Path) -> None:
    sound = list(itertools.chain(*global_batches(shard_folder, 5, 10)))
    damage(shard_folder, 3)
    stream = ShardStream(shard_folder, 5, transform=position_and_key, damage_budget=0.05)
    read = list(itertools.chain(*stream))
    (entry,) = stream.ledger
    assert (entry.shard, entry.ordinal, entry.index) == ("shard-000001.tar", 3, 11)
    assert entry.reason == "shard-000001.tar, sample 3: the image does not match its checksum"
    assert sound[entry.position][2] == "key-0011"
    assert read[entry.position] == (0, entry.position, sound[(entry.position + 1) % 50][2])
    assert [item for p, item in enumerate(read) if p != entry.position] == [
        item for p, item in enumerate(sound) if p != entry.position
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_ledger_is_kept_in_a_file(workers: int, shard_folder: Path, tmp_path: Path) -> None:
    damage(shard_folder, 3)
    file = tmp_path / "new/rank-0.jsonl"
    stream = ShardStream(shard_folder, 5, workers=workers, damage_budget=0.05, ledger_file=file)
    list(stream.batches(20))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [Damage(**line) for line in lines] == stream.ledger
    assert [(line["shard"], line["ordinal"]) for line in lines] == [("shard-000001.tar", 3)] * 2


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_beyond_the_budget_stops(workers: int, shard_folder: Path) -> None:
    damage(shard_folder, 3)
    stream = ShardStream(shard_folder, 5, workers=workers)
    with pytest.raises(
        DamagedSample, match=r"^1 of 50 samples are damaged, more than `damage_budget` \(=0.01\) allows"
    ):
        list(stream)


def test_counts_add_up_and_tell_damage_from_rules(make_source: Any) -> None:
    def judge(item: StreamedSample) -> int:
        number = item.sample.metadata["n"]
        if number % 10 == 3:
            raise DamagedSample("three")
        if number % 10 in {1, 7}:
            raise FilteredSample("too short" if number < 20 else "too dark")
        return number

    streams = [
        ShardStream(make_source(40), 8, rank=rank, world=2, workers=rank, transform=judge, damage_budget=0.5)
        for rank in range(2)
    ]
    for stream in streams:
        numbers = [number for batch in stream for number in batch]
        counts = stream.counts
        assert counts.yielded == len(numbers) == 20
        assert counts.read == counts.yielded + counts.substituted + counts.filtered.total()
        assert counts.substituted == len(stream.ledger) > 0
        assert set(counts.filtered) == {"too short", "too dark"}
        assert not {n % 10 for n in numbers} & {1, 3, 7}


def test_a_rule_that_leaves_everything_out_ends(make_source: Any) -> None:
    def nothing(item: StreamedSample) -> int:
        raise FilteredSample("too much")

    with pytest.raises(
        DamagedSample, match=r"^30 samples of list in a row are filtered or damaged; most are filtered: to"
    ):
        list(ShardStream(make_source(30), 5, transform=nothing))


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_in_a_row_stops_with_one_sentence(workers: int, make_source: Any) -> None:
    def broken(item: StreamedSample) -> int:
        raise DamagedSample("gone")

    stream = ShardStream(make_source(30), 5, workers=workers, transform=broken, damage_budget=1, damaged_in_a_row=4)
    with pytest.raises(DamagedSample, match=r"^4 samples of list in a row are damaged; the last: gone$"):
        list(stream)
    assert stream.counts.read == stream.counts.substituted == 4


def test_the_damage_budget_is_for_each_epoch(shard_folder: Path) -> None:
    damage(shard_folder, 3)
    stream = ShardStream(shard_folder, 5, damage_budget=0.02)
    for _ in range(3):
        list(stream)
    assert len(stream.ledger) == 3
    damage(shard_folder, 4)
    with pytest.raises(DamagedSample, match=r"^2 of 50 samples are damaged"):
        list(ShardStream(shard_folder, 5, damage_budget=0.02))


@pytest.mark.parametrize("workers", [0, 2])
def test_quarantined_batches_are_passed_over_and_nothing_else_moves(workers: int, shard_folder: Path) -> None:
    whole = global_batches(shard_folder, 8, 16)
    stream = ShardStream(shard_folder, 8, workers=workers, transform=position_and_key, quarantine=[0, 9])
    assert len(stream) == 6
    read = list(stream.batches(3))
    assert stream.number == 3
    state = stream.state_dict()
    read += list(stream.batches(2))
    bad = stream.number
    assert bad == 5
    stream.load_state_dict(state)  # back to before the batch that did harm
    stream.quarantine(bad)
    read = read[:3] + list(stream.batches(8))
    assert read == [whole[b] for b in (1, 2, 3, 4, 6, 7, 8, 10, 11, 12, 13)]
    assert stream.state_dict()["quarantine"] == [0, 5, 9]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_quarantine_travels_with_the_state(world: int, shard_folder: Path) -> None:
    whole = global_batches(shard_folder, 8, 10)
    first = ShardStream(shard_folder, 8, quarantine=[4])
    list(first.batches(2))
    state = json.loads(json.dumps(first.state_dict()))
    streams = [
        ShardStream(shard_folder, 8, rank=r, world=world, transform=position_and_key, quarantine=[6])
        for r in range(world)
    ]
    for stream in streams:
        stream.load_state_dict(state)
    parts = zip(*(stream.batches(4) for stream in streams), strict=True)
    assert [list(itertools.chain(*ranks)) for ranks in parts] == [whole[b] for b in (2, 3, 5, 7)]


def test_batches_under_way_are_not_changed_by_a_quarantine(shard_folder: Path) -> None:
    """What is read ahead cannot be: so the call that runs goes on alike with and without workers."""
    for workers in (0, 1):
        stream = ShardStream(shard_folder, 8, workers=workers, transform=position_and_key)
        batches = stream.batches(3)
        first = next(batches)
        stream.quarantine(1)
        assert [first, *batches] == global_batches(shard_folder, 8, 3)


def test_transform_may_refuse_a_sample(make_source: Any) -> None:
    def refuse_odd(item: StreamedSample) -> int:
        number = item.sample.metadata["n"]
        if number % 2:
            raise DamagedSample("odd")
        return number

    stream = ShardStream(make_source(10), 5, transform=refuse_odd, damage_budget=0.5)
    assert all(number % 2 == 0 for batch in stream for number in batch)
    assert {entry.index for entry in stream.ledger} <= {1, 3, 5, 7, 9}
    assert {(entry.shard, entry.ordinal) for entry in stream.ledger} >= {("list", 1)}


def test_all_damaged_ends() -> None:
    class Broken:
        name = "broken"

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            raise DamagedSample("gone")

        def identity(self, index: int) -> Any:
            return None

        def fingerprint(self) -> str:
            return "0"

    with pytest.raises(DamagedSample, match=r"^3 samples of broken in a row are damaged; the last: gone$"):
        list(ShardStream(Broken(), 1, damage_budget=1.0))
