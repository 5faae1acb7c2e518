"""Statistics against counting by hand, on a set small enough for it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from shards.errors import UserError
from shards.filters import Filters
from shards.sources.scenes import ScenesSource
from shards.stats import histogram, lines, spread, stats
from shards.write import build_shards


def test_counts_of_a_known_set(shard_folder: Path) -> None:
    """50 images of 6x4 with 1, 2 or 3 captions in turn, each of three words."""
    found = stats(shard_folder)
    assert (found.samples, found.shards, found.source) == (50, 7, "list")
    assert found.captions_per_image == {1: 17, 2: 17, 3: 16}
    assert found.captions == 17 + 34 + 48
    assert found.extensions == {"png": 50}
    assert (found.short_side.smallest, found.short_side.median, found.short_side.largest) == (4, 4, 4)
    assert [pair for pair in found.aspect.bins() if pair[1]] == [("1.4 to 1.6", 50)]
    assert [pair for pair in found.caption_words.bins() if pair[1]] == [("3 to 4", 99)]
    assert (found.records.looked_at, found.records.damaged, found.records.metadata) == (50, 0, {"n": 50})
    assert json.loads(json.dumps(found.to_json()))["captions"] == 99


def test_regions_tags_arrays_and_filters(tmp_path: Path) -> None:
    filters = Filters(max_characters=60)
    build_shards(ScenesSource(40, 0, "train"), tmp_path, samples_per_shard=16, filters=filters)
    found = stats(tmp_path, look=20)
    records = found.records
    assert records.looked_at == records.with_regions == records.with_tags == records.with_relations == 20
    assert sum(records.labels.values()) == records.regions
    assert found.with_arrays == {"features": found.samples, "probabilities": 0}
    assert found.filtered is not None
    assert found.filtered.kept == found.samples < 40
    text = lines(found)
    assert f"features of samples: {found.samples}" in text
    assert text[-2].startswith("40 samples read, ")


def test_damaged_samples_are_counted(shard_folder: Path) -> None:
    (shard_folder / "shard-000001.tar").write_bytes(b"")
    assert stats(shard_folder).records.damaged == 8
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        stats(shard_folder.parent)


def test_histogram_against_numpy() -> None:
    values = np.random.default_rng(0).integers(0, 300, size=501)
    edges = (10, 50, 100, 200)
    found = histogram(Counter(float(v) for v in values), edges)
    expected = np.histogram(values, [0, *edges, 1000])[0]
    assert list(found.counts) == expected.tolist()
    assert (found.median, found.smallest, found.largest) == (np.median(values), values.min(), values.max())
    assert [label for label, _ in found.bins()] == ["below 10", "10 to 49", "50 to 99", "100 to 199", "from 200"]
    assert histogram(Counter(), edges).counts == (0,) * 5


def test_spread_is_even_and_within() -> None:
    assert spread(10, 3) == [0, 3, 6]
    assert spread(3, 10) == [0, 1, 2]
    assert spread(0, 10) == []
