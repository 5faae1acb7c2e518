"""A list of samples: the same shards, fewer of their samples, the same identities."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import UserError
from shards.reader import ShardSet
from shards.selection import SelectedShards, write_selection
from shards.stream import ShardStream

KEPT = np.array([0, 7, 8, 9, 24, 25, 26, 27, 28, 29, 30, 31, 49])
"""Of shards of 8, 8, 8, 8, 8, 8 and 2."""


@pytest.fixture
def selected(shard_folder: Path, tmp_path: Path) -> SelectedShards:
    write_selection(ShardSet(shard_folder), KEPT, tmp_path / "kept.parquet")
    return SelectedShards(shard_folder, tmp_path / "kept.parquet")


def test_it_holds_what_the_list_names(selected: SelectedShards, shard_folder: Path, make_source: Any) -> None:
    whole, expected = ShardSet(shard_folder), make_source(50).samples
    assert [selected[i] for i in range(len(selected))] == [expected[i] for i in KEPT]
    assert [selected.identity(i) for i in range(len(selected))] == [whole.identity(i) for i in KEPT]
    assert [selected.place(i) for i in range(len(selected))] == [whole.place(i) for i in KEPT]
    assert selected.shard_sizes == [2, 2, 0, 8, 0, 0, 1]
    assert pickle.loads(pickle.dumps(selected))[3] == expected[9]
    for index in (-1, 13):
        with pytest.raises(IndexError):
            selected[index]


def test_the_list_is_plain_parquet(selected: SelectedShards, tmp_path: Path) -> None:
    rows = pq.read_table(tmp_path / "kept.parquet").to_pylist()
    assert [(row["shard"], row["ordinal"]) for row in rows][:3] == [
        (selected.shards.manifest.shards[number].sha256, ordinal) for number, ordinal in ((0, 0), (0, 7), (1, 0))
    ]


def test_it_streams_every_sample_once_per_epoch(selected: SelectedShards) -> None:
    stream: ShardStream[Any] = ShardStream(selected, 1)
    epochs = [[batch[0].sample.metadata["n"] for batch in stream.batches(13)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == KEPT.tolist()
    assert epochs[0] != epochs[1]


def test_other_lists_have_other_fingerprints(selected: SelectedShards, shard_folder: Path, tmp_path: Path) -> None:
    write_selection(ShardSet(shard_folder), KEPT[1:], tmp_path / "other.parquet")
    other = SelectedShards(shard_folder, tmp_path / "other.parquet")
    assert len({other.fingerprint(), selected.fingerprint(), ShardSet(shard_folder).fingerprint()}) == 3
    again = SelectedShards(shard_folder, tmp_path / "kept.parquet")
    assert again.fingerprint() == selected.fingerprint()


def test_a_list_from_another_tool_may_be_in_any_order(shard_folder: Path, tmp_path: Path) -> None:
    digests = [entry.sha256 for entry in ShardSet(shard_folder).manifest.shards]
    pq.write_table(pa.table({"shard": [digests[6], digests[0]], "ordinal": [1, 5]}), tmp_path / "list.parquet")
    selected = SelectedShards(shard_folder, tmp_path / "list.parquet")
    assert [selected[i].key for i in range(2)] == ["key-0005", "key-0049"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"shard": ["f" * 64], "ordinal": [0]}, "names shards that `shards` .* does not hold"),
        ({"shard": ["GOOD"], "ordinal": [8]}, "must name samples that its shards hold"),
        ({"shard": ["GOOD"], "ordinal": [-1]}, "must name samples that its shards hold"),
        ({"shard": ["GOOD"]}, "must be parquet with `shard` and `ordinal`"),
    ],
)
def test_refused_lists(columns: dict[str, list[Any]], message: str, shard_folder: Path, tmp_path: Path) -> None:
    good = ShardSet(shard_folder).manifest.shards[0].sha256
    columns = {name: [good if value == "GOOD" else value for value in column] for name, column in columns.items()}
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    with pytest.raises(UserError, match=message):
        SelectedShards(shard_folder, tmp_path / "list.parquet")
    with pytest.raises(UserError, match="must be a file"):
        SelectedShards(shard_folder, tmp_path / "none.parquet")
