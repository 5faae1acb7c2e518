"""The sequence of global batches does not depend on ranks, workers or restarts."""

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
from shards.errors import UserError
from shards.stream import ShardStream, StreamedSample
from shards.write import build_shards
from tests.shards.streams import global_batches, position_and_key


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


def test_the_package_offers_the_stream_without_importing_torch() -> None:
    program = "import sys, shards; assert 'torch' not in sys.modules; print(shards.ShardStream.__module__)"
    assert subprocess.check_output([sys.executable, "-c", program]).strip() == b"shards.stream"
    with pytest.raises(AttributeError, match="no attribute 'ShardStraem'"):
        shards.ShardStraem  # noqa: B018


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
