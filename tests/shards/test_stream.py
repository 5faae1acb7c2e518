"""The sequence of global batches does not depend on ranks, workers or restarts; damage is replaced and counted."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shards
from shards.errors import DamagedSample, FilteredSample, UserError
from shards.stream import Damage, ShardStream, StreamedSample
from shards.write import build_shards


def position_and_key(item: StreamedSample) -> tuple[int, int, str]:
    return item.epoch, item.position, item.sample.key


def global_batches(folder: Path, batch: int, count: int, *, world: int = 1, workers: int = 0) -> list[list[Any]]:
    streams = [
        ShardStream(folder, batch, rank=rank, world=world, workers=workers, transform=position_and_key)
        for rank in range(world)
    ]
    parts = zip(*(stream.batches(count) for stream in streams), strict=True)
    return [list(itertools.chain(*ranks)) for ranks in parts]


def test_every_sample_once_per_epoch_in_full_batches(shard_folder: Path) -> None:
    batches = global_batches(shard_folder, 8, 25)
    assert {len(batch) for batch in batches} == {8}
    sequence = list(itertools.chain(*batches))
    assert [item[:2] for item in sequence] == [(p // 50, p) for p in range(200)]
    epochs = [[key for epoch, _, key in sequence if epoch == e] for e in range(4)]
    assert all(sorted(epoch) == [f"key-{i:04d}" for i in range(50)] for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 2), (2, 0), (4, 0), (2, 2)])
def test_sequence_is_independent_of_world_and_workers(world: int, workers: int, shard_folder: Path) -> None:
    reference = global_batches(shard_folder, 8, 9)
    assert global_batches(shard_folder, 8, 9, world=world, workers=workers) == reference


@pytest.mark.parametrize(("stop", "world", "workers"), [(1, 2, 0), (6, 1, 2), (7, 4, 0), (9, 2, 1)])
def test_resume_anywhere_at_another_world_size(stop: int, world: int, workers: int, shard_folder: Path) -> None:
    reference = global_batches(shard_folder, 8, 16)
    first = ShardStream(shard_folder, 8, workers=workers)
    for _ in first.batches(stop):
        pass
    state = first.state_dict()
    resumed = []
    streams = [ShardStream(shard_folder, 8, rank=r, world=world, transform=position_and_key) for r in range(world)]
    for stream in streams:
        stream.load_state_dict(state)
    for parts in zip(*(stream.batches(16 - stop) for stream in streams), strict=True):
        resumed.append(list(itertools.chain(*parts)))
    assert resumed == reference[stop:]


@pytest.mark.parametrize("workers", [0, 2])
def test_state_counts_what_was_handed_over_not_what_was_read_ahead(workers: int, shard_folder: Path) -> None:
    stream = ShardStream(shard_folder, 5, workers=workers)
    batches = iter(stream)
    next(batches)
    next(batches)
    assert stream.state_dict()["position"] == 10
    assert len(stream) == 8
    batches.close()  # type: ignore[attr-defined]
    assert [item.position for item in next(stream.batches(1))] == [10, 11, 12, 13, 14]


def test_length_and_epochs_with_straddling_batches(shard_folder: Path) -> None:
    stream = ShardStream(shard_folder, 8)
    lengths = []
    for epoch in range(4):
        assert stream.epoch == epoch
        lengths.append(len(stream))
        assert len(list(stream)) == lengths[-1]
    assert lengths == [7, 6, 6, 6]
    assert stream.position == 200


def test_corpus_smaller_than_a_batch(make_source: Any) -> None:
    stream: ShardStream[list[StreamedSample]] = ShardStream(make_source(3), 8)
    (batch,) = stream
    assert [item.epoch for item in batch] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert (stream.epoch, len(stream)) == (2, 1)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_rank_reads_its_share_of_the_bytes(world: int, make_source: Any) -> None:
    class Counting(type(make_source(1))):  # type: ignore[misc]
        read = 0

        def __getitem__(self, index: int) -> Any:
            self.read += 1
            return super().__getitem__(index)

    for rank in range(world):
        source = Counting(make_source(48).samples)
        list(ShardStream(source, 8, rank=rank, world=world))
        assert source.read == 48 // world


def test_random_draws_depend_on_seed_and_position_alone(shard_folder: Path) -> None:
    def draw(item: StreamedSample) -> tuple[int, float]:
        return item.position, item.rng().random()

    def draws(seed: int, **options: int) -> dict[int, float]:
        return {p: v for batch in ShardStream(shard_folder, 8, seed=seed, transform=draw, **options) for p, v in batch}

    assert draws(3) == draws(3, workers=2)
    assert len(set(draws(3).values())) == 56
    assert draws(3) != draws(4)
    part = draws(3, rank=1, world=2)
    assert part == {p: v for p, v in draws(3).items() if p in part}


def test_collate_runs_on_each_part(shard_folder: Path) -> None:
    def collate(items: list[StreamedSample]) -> torch.Tensor:
        return torch.tensor([item.position for item in items])

    stream = ShardStream(shard_folder, 8, rank=1, world=2, workers=1, collate=collate)
    assert [batch.tolist() for batch in stream.batches(2)] == [[4, 5, 6, 7], [12, 13, 14, 15]]


def test_workers_leave_the_trainers_random_state_alone(shard_folder: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(ShardStream(shard_folder, 8, workers=1).batches(2))
    assert torch.equal(before, torch.get_rng_state())


def damage(folder: Path, ordinal: int) -> None:
    """Flips one image byte of a sample in the second shard."""
    from shards.manifest import read_index

    offset = read_index(folder / "shard-000001.index.parquet")["image_offset"][ordinal].as_py()
    tar = folder / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[offset + 30] ^= 1
    tar.write_bytes(content)


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


def test_the_package_offers_the_stream_without_importing_torch() -> None:
    program = "import sys, shards; assert 'torch' not in sys.modules; print(shards.ShardStream.__module__)"
    assert subprocess.check_output([sys.executable, "-c", program]).strip() == b"shards.stream"
    with pytest.raises(AttributeError, match="no attribute 'ShardStraem'"):
        shards.ShardStraem  # noqa: B018


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


@pytest.mark.parametrize("prefetch", [1, 5])
def test_prefetch_and_lasting_workers_change_nothing(prefetch: int, shard_folder: Path) -> None:
    reference = global_batches(shard_folder, 8, 19)
    stream = ShardStream(shard_folder, 8, workers=2, prefetch=prefetch, transform=position_and_key)
    lasting = list(stream.batches(19))  # the same workers across epochs
    stream = ShardStream(shard_folder, 8, workers=2, prefetch=prefetch, transform=position_and_key)
    anew = list(stream) + list(stream) + list(stream)  # new ones for each
    assert lasting == anew == reference


def test_worker_init_runs_in_each_worker(shard_folder: Path, tmp_path: Path) -> None:
    def note(number: int) -> None:
        (tmp_path / f"{number}-{os.getpid()}").touch()

    list(ShardStream(shard_folder, 8, workers=2, worker_init=note))
    names = sorted(path.name for path in tmp_path.glob("?-*"))
    assert [name[0] for name in names] == ["0", "1"]
    assert str(os.getpid()) not in {name[2:] for name in names}


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 100, "world": 8}, "`global_batch` (=100) must be divisible by `world` (=8)"),
        ({"global_batch": 8, "rank": 2, "world": 2}, "`rank` (=2) must be at least 0 and less than `world` (=2)"),
        ({"global_batch": 8, "world": 0}, "`rank` (=0) must be at least 0 and less than `world` (=0)"),
        ({"global_batch": 0}, "`global_batch` (=0) must be at least 1"),
        ({"global_batch": 8, "workers": -1}, "`workers` (=-1) must be at least 0"),
        ({"global_batch": 8, "prefetch": 0}, "`prefetch` (=0) must be at least 1"),
        ({"global_batch": 8, "quarantine": [-1]}, "`quarantine` (=-1) must be at least 0"),
        ({"global_batch": 8, "damage_budget": 2}, "`damage_budget` (=2) must be between 0 and 1"),
        ({"global_batch": 8, "damaged_in_a_row": 0}, "`damaged_in_a_row` (=0) must be at least 1"),
        ({"global_batch": 8, "seed": -1}, "`seed` (=-1) must be at least 0 and less than 2**64"),
    ],
)
def test_refusals(options: dict[str, Any], message: str, make_source: Any) -> None:
    with pytest.raises(UserError) as error:
        ShardStream(make_source(3), **options)
    assert str(error.value) == message


def test_refuses_an_empty_source_and_a_folder_without_a_build(make_source: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`sources` \(=list\) must hold at least one sample"):
        ShardStream(make_source(0), 1)
    with pytest.raises(UserError, match=r"has no manifest.json"):
        ShardStream(tmp_path, 1)


@pytest.mark.parametrize("other", [{"seed": 1}, {"global_batch": 10}])
def test_stale_state_is_refused(other: dict[str, Any], shard_folder: Path) -> None:
    stream = ShardStream(shard_folder, 5)
    state = {**stream.state_dict(), **other}
    ((name, value),) = other.items()
    with pytest.raises(UserError, match=rf"^`{name}` \(=.*\) must be {value}, as in the saved stream state$"):
        stream.load_state_dict(state)


def test_state_of_another_manifest_is_refused(shard_folder: Path, tmp_path: Path, make_source: Any) -> None:
    build_shards(make_source(51), tmp_path / "longer", samples_per_shard=8)
    state = ShardStream(tmp_path / "longer", 5).state_dict()
    with pytest.raises(
        UserError, match=r"^`sources` \(=set, fingerprint \w{16}\) must be longer, fingerprint \w{16}, as"
    ):
        ShardStream(shard_folder, 5).load_state_dict(state)


def test_state_is_json_and_does_not_grow(shard_folder: Path) -> None:
    stream = ShardStream(shard_folder, 8)
    sizes = []
    for _ in range(4):
        list(stream.batches(100))
        sizes.append(len(json.dumps(stream.state_dict())))
    assert max(sizes) - min(sizes) <= 1  # a digit of the position


def test_rng_is_numpy_philox(shard_folder: Path) -> None:
    item = next(ShardStream(shard_folder, 1).batches(1))[0]
    assert isinstance(item.rng().bit_generator, np.random.Philox)
    assert item.rng().random() == item.rng().random()
