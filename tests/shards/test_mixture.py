"""Weighted sources: each has its share at any moment, each sample once per epoch of its source, nothing grows."""

import itertools
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError
from shards.mixture import PERIOD, Mixture, Schedule
from shards.sample import Sample
from shards.stream import ShardStream, StreamedSample
from shards.write import build_shards
from tests.shards.conftest import ListSource, png


def corpus(name: str, count: int) -> ListSource:
    """Samples `name-0`, `name-1` ..."""
    source = ListSource([Sample(f"{name}-{i}", png(i), "png", (f"{name} {i}",)) for i in range(count)], name * 32)
    source.name = name
    return source


def key(item: StreamedSample) -> tuple[int, int, str]:
    return item.epoch, item.position, item.sample.key


def keys(sources: Any, batch: int, count: int, **options: Any) -> list[tuple[int, int, str]]:
    return list(itertools.chain(*ShardStream(sources, batch, transform=key, **options).batches(count)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7))
def test_no_source_is_ever_a_whole_turn_off_its_share(weights: list[int]) -> None:
    schedule = Schedule(weights)
    total = sum(weights)
    sources, turns = schedule.turns(range(2 * total))
    seen = [0] * len(weights)
    for place, (source, turn) in enumerate(zip(sources.tolist(), turns.tolist(), strict=True), start=1):
        assert turn == seen[source]
        seen[source] += 1
        assert all(abs(count - Fraction(w * place, total)) < 1 for count, w in zip(seen, weights, strict=True))


def test_any_slice_of_the_schedule_agrees_with_the_whole() -> None:
    schedule = Schedule([0.5, 0.3, 0.2])
    assert schedule.shares == (5, 3, 2)
    whole = np.stack(schedule.turns(range(100)))
    for start in range(0, 90, 7):
        assert (np.stack(schedule.turns(range(start, start + 9))) == whole[:, start : start + 9]).all()
    far = 10**15
    sources, turns = schedule.turns(range(far, far + 10))
    assert turns[sources == 0].tolist() == [far // 2 + i for i in range(5)]


@pytest.mark.parametrize(
    ("weights", "shares"),
    [([1], (1,)), ([2, 1], (2, 1)), ([0.25, 0.75], (1, 3)), ([10, 4], (5, 2)), ([1e-2, 1], (1, 100))],
)
def test_simple_weights_are_exact(weights: list[float], shares: tuple[int, ...]) -> None:
    assert Schedule(weights).shares == shares


def test_odd_weights_are_rounded_to_a_bounded_period() -> None:
    schedule = Schedule([1 / 3, 1 / 7, 0.1234567891])
    assert schedule.period == PERIOD
    exact = np.array([1 / 3, 1 / 7, 0.1234567891])
    assert np.abs(np.array(schedule.shares) / PERIOD - exact / exact.sum()).max() < 1 / PERIOD
    assert Counter(schedule.source_P.tolist()) == dict(enumerate(schedule.shares))


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_must_be_positive_and_finite(weight: float) -> None:
    with pytest.raises(UserError, match=r"^`weight` \(=.*\) must be positive and finite$"):
        ShardStream([(corpus("a", 3), 1), (corpus("b", 3), weight)], 2)
    with pytest.raises(UserError, match=r"^`weight` \(=1e-09\) must be at least 1/65536 of the sum of the weights$"):
        Schedule([1, 1e-9])


def test_each_source_gives_every_sample_once_per_epoch_of_its_own() -> None:
    sequence = keys([(corpus("a", 30), 3), (corpus("b", 7), 1)], 8, 40)
    assert [position for _, position, _ in sequence] == list(range(320))
    for name, size, share in (("a", 30, 240), ("b", 7, 80)):
        own = [(epoch, k) for epoch, _, k in sequence if k.startswith(name)]
        assert len(own) == share
        for epoch in range(share // size):
            lap = own[epoch * size : (epoch + 1) * size]
            assert {e for e, _ in lap} == {epoch}
            assert sorted(k for _, k in lap) == sorted(f"{name}-{i}" for i in range(size))
    laps = [tuple(k for e, _, k in sequence if e == lap and k[0] == "b") for lap in range(11)]
    assert len(set(laps)) == 11


def test_an_epoch_is_as_many_positions_as_there_are_samples() -> None:
    stream: ShardStream[Any] = ShardStream([(corpus("a", 30), 3), (corpus("b", 7), 1)], 8)
    lengths = []
    for epoch in range(3):
        assert stream.epoch == epoch
        lengths.append(len(stream))
        list(stream)
    assert lengths == [5, 5, 4]  # 37, 74 and 111 positions end in batches 4, 9 and 13


@pytest.mark.parametrize(("world", "workers", "stop"), [(1, 1, 3), (2, 0, 1), (4, 2, 6), (8, 0, 5)])
def test_a_mixture_resumes_anywhere(world: int, workers: int, stop: int, shard_folder: Path) -> None:
    sources = [(shard_folder, 2.5), (corpus("b", 7), 1), (corpus("c", 1), 0.5)]
    whole = keys(sources, 8, 12)
    first: ShardStream[Any] = ShardStream(sources, 8, workers=workers)
    list(first.batches(stop))
    streams: list[ShardStream[Any]] = []
    for rank in range(world):
        streams.append(ShardStream(sources, 8, rank=rank, world=world, workers=workers, transform=key))
        streams[-1].load_state_dict(first.state_dict())
    parts = zip(*(stream.batches(12 - stop) for stream in streams), strict=True)
    assert [item for ranks in parts for part in ranks for item in part] == whole[stop * 8 :]


def test_one_source_in_a_list_is_that_source(shard_folder: Path) -> None:
    assert keys([(shard_folder, 7)], 8, 9) == keys(shard_folder, 8, 9)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([("a", 3), ("b", 2)], r"`weight` of a \(=3/4 of the sum\) must be 3/5, as in the saved stream state"),
        ([("a", 6), ("b", 2)], ""),
        ([("a", 3), ("c", 1)], r"`sources` \(=b, fingerprint b{16}\) must be c, fingerprint c{16}, as in the saved"),
        ([("b", 1), ("a", 3)], r"`sources` \(=a, fingerprint a{16}\) must be b, fingerprint b{16}, as in the saved"),
        ([("a", 3)], r"`sources` \(=a, b\) must be a, as in the saved stream state"),
    ],
)
def test_a_changed_mixture_is_refused_with_the_difference(other: list[tuple[str, int]], message: str) -> None:
    stream: ShardStream[Any] = ShardStream([(corpus("a", 9), 3), (corpus("b", 9), 1)], 2)
    state = ShardStream([(corpus(name, 9), weight) for name, weight in other], 2).state_dict()
    if not message:
        return stream.load_state_dict(state)
    with pytest.raises(UserError, match=rf"^{message}"):
        stream.load_state_dict(state)
    return None


def test_what_cannot_be_mixed_is_refused(shard_folder: Path, tmp_path: Path, make_source: Any) -> None:
    build_shards(make_source(50), tmp_path / "copy", samples_per_shard=8)
    with pytest.raises(UserError, match=r"^`sources` \(=copy\) must be named once, with one weight"):
        ShardStream([(shard_folder, 1), (tmp_path / "copy", 1)], 2)
    with pytest.raises(UserError, match=r"^`sources` \(=b\) must hold at least one sample$"):
        ShardStream([(corpus("a", 3), 1), (corpus("b", 0), 1)], 2)
    with pytest.raises(UserError, match=r"^`sources` must name at least one$"):
        ShardStream([], 2)


def test_a_position_deep_in_huge_sources_is_quick() -> None:
    class Huge(ListSource):
        shard_sizes = [10_000] * 40_000

        def __len__(self) -> int:
            return 400_000_000

        def place(self, index: int) -> tuple[str, int]:
            return "", index

    mixture = Mixture([(Huge([], "a"), 0.7), (Huge([], "b"), 0.1), (corpus("c", 3), 0.2)], seed=0)
    due = mixture.due(range(10**12, 10**12 + 1000))
    assert Counter(turn.source for turn, _ in due) == {0: 700, 1: 100, 2: 200}
    assert all(due[i][1] != due[i + 10][1] for i in range(0, 100, 10))
