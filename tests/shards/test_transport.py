"""Samples from workers are those that this process reads, whichever way they come."""

import numpy as np
import pytest

from shards import transport
from shards.sample import Region, Sample
from shards.sources.scenes import ScenesSource
from shards.stream import ShardStream
from shards.write import build_shards


class Featured(ScenesSource):
    """Scenes of growing size, so that places hold another number of bytes each time."""

    def __getitem__(self, index: int) -> Sample:
        return ScenesSource(index + 1, self.seed, self.split, 48 + index)[index]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transport") / "shards"
    build_shards(Featured(40, 0, "train"), folder, samples_per_shard=15)
    return folder


def _spy(monkeypatch) -> list[bool]:
    """Notes of each batch whether it comes through shared memory."""
    seen: list[bool] = []
    plain = transport.Transport.unpack

    def unpack(self, part):
        seen.append(isinstance(part.batch, transport.Packed))
        return plain(self, part)

    monkeypatch.setattr(transport.Transport, "unpack", unpack)
    return seen


@pytest.mark.parametrize("room", [1 << 18, 4400, 1])
def test_workers_hand_over_what_was_read(shards, monkeypatch, room):
    """Batches that fit, that fit sometimes, and that never do; more of them than there are places."""
    monkeypatch.setattr(transport, "SAMPLE_BYTES", room)
    through_memory = _spy(monkeypatch)
    alone, others = ([*ShardStream(shards, 4, workers=workers).batches(30)] for workers in (0, 2))
    for here, there in zip(alone, others, strict=True):
        assert [item.sample for item in here] == [item.sample for item in there]
        assert [(item.identity, item.position) for item in here] == [(item.identity, item.position) for item in there]
        assert all(type(item.sample.image) is bytes for item in there)
    assert len(through_memory) == 30
    assert set(through_memory) == {1 << 18: {True}, 4400: {True, False}, 1: {False}}[room]


def test_batches_stay_as_they_are(shards):
    """A batch that is kept does not change when its place in memory is used again."""
    kept = [*ShardStream(shards, 4, workers=1).batches(20)]
    again = [*ShardStream(shards, 4).batches(20)]
    assert [[item.sample for item in batch] for batch in kept] == [[item.sample for item in batch] for batch in again]


class Regions(ScenesSource):
    """One scene whose regions have features."""

    def __getitem__(self, index: int) -> Sample:
        features = np.arange(6, dtype=np.float32).reshape(2, 3)
        regions = (Region((0, 0, 4, 4), "a"), Region((1, 1, 5, 5), "b"))
        return Sample("a", super().__getitem__(index).image, "jpg", ("one",), regions, region_features=features)


@pytest.mark.parametrize("workers", [0, 1])
def test_arrays_can_be_written_to(tmp_path, workers):
    build_shards(Regions(1, 0, "train"), tmp_path / "shards")
    (batch,) = ShardStream(tmp_path / "shards", 1, workers=workers).batches(1)
    found = batch[0].sample.region_features
    assert np.array_equal(found, [[0, 1, 2], [3, 4, 5]])
    found[0, 0] = 7
