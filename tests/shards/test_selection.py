"""A selection list leaves samples out of every use of a shard set, and takes one bit a sample."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import UserError
from shards.reader import ShardSet
from shards.selection import Selected, write_selection
from shards.stream import ShardStream, StreamedSample


def write_list(path: Path, shards: ShardSet, kept: list[int], **columns: Any) -> Path:
    identities = [shards.identity(index) for index in kept]
    table = {"shard": [name for name, _ in identities], "ordinal": [ordinal for _, ordinal in identities]}
    pq.write_table(pa.table({**table, **columns}), path, row_group_size=5)
    return path


@pytest.mark.parametrize("kept", [[0], [49], [7, 8], list(range(0, 50, 3)), list(range(50)), list(range(8, 16))])
def test_the_kept_samples_in_their_order(kept: list[int], shard_folder: Path, tmp_path: Path) -> None:
    shards = ShardSet(shard_folder)
    shuffled = np.random.default_rng(0).permutation(kept).tolist()
    selected = Selected(shards, write_list(tmp_path / "list.parquet", shards, shuffled))
    for one in (selected, pickle.loads(pickle.dumps(selected))):
        assert len(one) == len(kept)
        assert [one[i] for i in range(len(kept))] == [shards[i] for i in kept]
        assert [one.identity(i) for i in range(len(kept))] == [shards.identity(i) for i in kept]
        assert [one.place(i) for i in range(len(kept))] == [shards.place(i) for i in kept]
        assert one.shard_sizes == [sum(8 * n <= i < 8 * n + 8 for i in kept) for n in range(7)]
    with pytest.raises(IndexError):
        selected[len(kept)]


def test_a_list_of_ours_names_identities(shard_folder: Path, tmp_path: Path) -> None:
    shards, kept = ShardSet(shard_folder), [0, 7, 8, 31, 49]
    write_selection(shards, np.array(kept), tmp_path / "ours.parquet")
    rows = pq.read_table(tmp_path / "ours.parquet").to_pylist()
    assert [(row["shard"], row["ordinal"]) for row in rows] == [shards.identity(index) for index in kept]
    selected = Selected(shards, tmp_path / "ours.parquet")
    assert [selected.identity(i) for i in range(len(selected))] == [shards.identity(index) for index in kept]


def test_a_stream_of_the_kept_samples(shard_folder: Path, tmp_path: Path) -> None:
    def key(item: StreamedSample) -> str:
        return item.sample.key

    shards = ShardSet(shard_folder)
    kept = [i for i in range(50) if i % 3]
    selected = Selected(shards, write_list(tmp_path / "list.parquet", shards, kept))
    for workers in (0, 2):
        stream: ShardStream[list[str]] = ShardStream(selected, 3, workers=workers, transform=key)
        epochs = [[k for batch in stream.batches(11) for k in batch] for _ in range(3)]
        assert all(sorted(epoch) == [f"key-{i:04d}" for i in kept] for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]


def test_another_list_is_other_data(shard_folder: Path, tmp_path: Path) -> None:
    shards = ShardSet(shard_folder)
    one, other = (Selected(shards, write_list(tmp_path / f"{n}.parquet", shards, list(range(n)))) for n in (20, 21))
    assert len({shards.fingerprint(), one.fingerprint(), other.fingerprint()}) == 3
    again = Selected(shards, write_list(tmp_path / "again.parquet", shards, list(range(20))))
    assert again.fingerprint() == one.fingerprint()
    with pytest.raises(UserError, match=r"^`sources` \(=set by 21.parquet, .* must be set by 20.parquet, "):
        ShardStream(other, 3).load_state_dict(ShardStream(one, 3).state_dict())


def test_what_is_no_list_of_this_shard_set_is_refused(shard_folder: Path, tmp_path: Path) -> None:
    shards = ShardSet(shard_folder)
    digest = shards.identity(0).shard
    path = tmp_path / "list.parquet"
    for columns, message in (
        ({"shard": ["0" * 16]}, r"names shard 0{16}, which the shard set does not have"),
        ({"ordinal": [8]}, rf"names shard {digest}, sample 8, which"),
        ({"ordinal": [-1]}, rf"names shard {digest}, sample -1, which"),
    ):
        with pytest.raises(UserError, match=message):
            Selected(shards, write_list(path, shards, [0], **columns))
    with pytest.raises(UserError, match=r"must keep at least one sample"):
        Selected(
            shards, write_list(path, shards, [], shard=pa.array([], pa.string()), ordinal=pa.array([], pa.int64()))
        )
    pq.write_table(pa.table({"key": ["a"]}), path)
    with pytest.raises(UserError, match=r"must have the columns `shard` and `ordinal`"):
        Selected(shards, path)
    for content in (None, b"", b"no parquet"):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=r"is not a selection list"):
            Selected(shards, path)
        path.touch()


def test_a_bit_per_sample(shard_folder: Path, tmp_path: Path) -> None:
    shards = ShardSet(shard_folder)
    selected = Selected(shards, write_list(tmp_path / "list.parquet", shards, [1, 2]))
    assert sum(bits.nbytes for bits in selected._bits) == 7
