"""Numbers about samples that another program worked out, joined to their metadata: what filters look at.

A parquet file with `shard` (string: the first 16 hex digits of the shard's sha256, as in a sample's identity),
`ordinal` (integer: place in the shard), and a column of floating-point numbers for each score, such as `similarity`. A
model of images and texts writes it; this package knows none. N rows.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.errors import UserError
from shards.reader import ShardSet
from shards.sample import Identity, Sample
from shards.selection import DIGEST


class ScoredShards:
    """The samples of a shard set with their scores in the metadata, as a `Source`; those without a row have none.

    Memory is 8 bytes per sample and score.

    Raises:
        UserError: no such file, one of other shards, one without a column of numbers, a sample named twice.
    """

    def __init__(self, shards: ShardSet, scores: Path) -> None:
        self.shards, self.name = shards, shards.name
        table = _read(scores)
        indices_N = _indices(table, shards, scores)
        if len(np.unique(indices_N)) < len(indices_N):
            raise UserError(f"`scores` (={scores}) must name each sample once")
        names = [column.name for column in table.schema if pa.types.is_floating(column.type)]
        if not names:
            raise UserError(f"`scores` (={scores}) must have a column of floating-point numbers, such as similarity")
        self._scores = {name: np.full(len(shards), np.nan) for name in names}
        for name in names:
            self._scores[name][indices_N] = table[name].to_numpy()
        self._digest = hashlib.sha256(scores.read_bytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Sample:
        sample = self.shards[index]
        scores = {name: float(values[index]) for name, values in self._scores.items()}
        known = {name: score for name, score in scores.items() if not np.isnan(score)}
        return replace(sample, metadata={**sample.metadata, **known})

    def expect(self, indices: Iterable[int]) -> None:
        self.shards.expect(indices)

    def identity(self, index: int) -> Identity:
        return self.shards.identity(index)

    def fingerprint(self) -> str:
        return hashlib.sha256((self.shards.fingerprint() + self._digest).encode()).hexdigest()


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise UserError(f"`scores` (={path}) must be a file")
    try:
        table = pq.read_table(path, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"`scores` (={path}) must be parquet: {' '.join(str(error).split())}") from None
    if not {"shard", "ordinal"} <= set(table.column_names):
        raise UserError(f"`scores` (={path}) must have the columns `shard` and `ordinal`")
    return table


def _indices(table: pa.Table, shards: ShardSet, path: Path) -> np.ndarray:
    """The index in the set of each row, int64 [N]."""
    sizes = np.array(shards.shard_sizes)
    firsts = np.array([0, *accumulate(shards.shard_sizes)])
    digests = pa.array([entry.sha256[:DIGEST] for entry in shards.manifest.shards], pa.string())
    numbers = pc.index_in(table["shard"].cast(pa.string()), digests)
    if numbers.null_count:
        raise UserError(f"`scores` (={path}) names shards that `shards` (={shards.address}) does not hold")
    numbers_N, ordinals_N = numbers.to_numpy(), table["ordinal"].to_numpy()
    if (ordinals_N < 0).any() or (ordinals_N >= sizes[numbers_N]).any():
        raise UserError(f"`scores` (={path}) must name samples that the shards hold")
    return firsts[numbers_N] + ordinals_N
