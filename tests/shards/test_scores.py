"""Scores from outside: joined by place, looked at by filters, kept in the new shards."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import UserError
from shards.filters import Filters
from shards.reader import ShardSet
from shards.scores import ScoredShards
from shards.write import build_shards


def write_scores(folder: Path, path: Path, indices: list[int], **columns: list[Any]) -> Path:
    identities = [ShardSet(folder).identity(i) for i in indices]
    table = {"shard": [identity.shard for identity in identities], "ordinal": [i.ordinal for i in identities]}
    pq.write_table(pa.table(table | columns), path)
    return path


def test_filters_see_scores_and_new_shards_keep_them(shard_folder: Path, tmp_path: Path) -> None:
    indices = list(range(49, -1, -1))
    path = write_scores(shard_folder, tmp_path / "s.parquet", indices, similarity=[i / 100 for i in indices])
    source = ScoredShards(ShardSet(shard_folder), path)
    manifest = build_shards(source, tmp_path / "new", filters=Filters(min_similarity=0.4))
    assert manifest.filtered is not None
    assert manifest.filtered.rejected == {"min_similarity": 40}
    new = ShardSet(tmp_path / "new")
    assert [new[i].metadata for i in range(10)] == [{"n": i, "similarity": i / 100} for i in range(40, 50)]


def test_samples_without_a_score_are_counted(shard_folder: Path, tmp_path: Path) -> None:
    path = write_scores(shard_folder, tmp_path / "s.parquet", [0, 9], similarity=[0.1, None], other=[0.5, np.nan])
    source = ScoredShards(ShardSet(shard_folder), path)
    assert source[0].metadata == {"n": 0, "similarity": 0.1, "other": 0.5}
    assert source[9].metadata == {"n": 9}
    manifest = build_shards(source, tmp_path / "new", filters=Filters(min_similarity=0.4))
    assert manifest.filtered is not None
    assert manifest.filtered.unscored == {"min_similarity": 49}
    assert source.fingerprint() != ShardSet(shard_folder).fingerprint()


@pytest.mark.parametrize(
    ("indices", "columns", "message"),
    [
        ([1, 1], {"similarity": [0.1, 0.2]}, "must name each sample once"),
        ([1], {"note": ["x"]}, "must have a column of floating-point numbers"),
        ([1], {"similarity": [0.1], "ordinal": [8]}, "must name samples that the shards hold"),
        ([1], {"similarity": [0.1], "shard": ["f" * 16]}, "names shards that `shards` .* does not hold"),
    ],
)
def test_refusals(
    indices: list[int], columns: dict[str, list[Any]], message: str, shard_folder: Path, tmp_path: Path
) -> None:
    path = write_scores(shard_folder, tmp_path / "s.parquet", indices, **columns)
    with pytest.raises(UserError, match=message):
        ScoredShards(ShardSet(shard_folder), path)
    for name, content, reason in (("none", None, "must be a file"), ("text", b"text", "must be parquet")):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=reason):
            ScoredShards(ShardSet(shard_folder), tmp_path / name)
