"""A part of a shard set as a list: which samples to use, without writing them again.

    shards filter DIR --list FILE -> FILE (parquet) -> SelectedShards(DIR, FILE) -> stream

One row per sample: `shard` string, hex sha256 of the tar; `ordinal` int64, the place inside. Whole samples are
selected, with all their captions. S shards, N selected samples.
"""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.errors import UserError
from shards.reader import ShardSet
from shards.sample import Identity, Sample
from shards.storage import write_atomically


def write_selection(shards: ShardSet, kept: np.ndarray, path: Path) -> None:
    """Writes the samples with the indices `kept`, int64 ascending, as a list."""
    starts_S = _starts(shards)
    numbers = np.searchsorted(starts_S, kept, side="right") - 1
    digests = pa.array([entry.sha256 for entry in shards.manifest.shards])
    columns = {
        "shard": pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), digests),
        "ordinal": pa.array(kept - starts_S[numbers], pa.int64()),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


class SelectedShards:
    """The samples of a shard set that a list names, as a `Source`; identities are those of the whole set.

    Memory is 8 bytes per selected sample.

    Raises:
        UserError: no such list, or one of other shards.
    """

    def __init__(self, folder: str | Path, selection: str | Path) -> None:
        self.shards = ShardSet(folder)
        self.name = self.shards.name
        self._indices_N = _read(Path(selection), self.shards)
        numbers_N = np.searchsorted(_starts(self.shards), self._indices_N, side="right") - 1
        self.shard_sizes: list[int] = np.bincount(numbers_N, minlength=len(self.shards.shard_sizes)).tolist()

    def __len__(self) -> int:
        return len(self._indices_N)

    def __getitem__(self, index: int) -> Sample:
        return self.shards[self._whole(index)]

    def identity(self, index: int) -> Identity:
        return self.shards.identity(self._whole(index))

    def place(self, index: int) -> tuple[str, int]:
        """The file name of the shard and the ordinal in it, for messages."""
        return self.shards.place(self._whole(index))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.shards.fingerprint().encode() + self._indices_N.tobytes()).hexdigest()

    def _whole(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return int(self._indices_N[index])


def _starts(shards: ShardSet) -> np.ndarray:
    """Index of the first sample of each shard, int64 [S]."""
    sizes_S = np.array(shards.shard_sizes, dtype=np.int64)
    return np.cumsum(sizes_S) - sizes_S


def _read(path: Path, shards: ShardSet) -> np.ndarray:
    """Indices in the set, int64 [N], ascending."""
    if not path.is_file():
        raise UserError(f"`selection` (={path}) must be a file")
    try:
        table = pq.read_table(path, columns=["shard", "ordinal"], use_threads=False)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"`selection` (={path}) must be parquet with `shard` and `ordinal`: {error}") from None
    digests = pa.array([entry.sha256 for entry in shards.manifest.shards], pa.string())
    numbers = pc.index_in(table["shard"].cast(pa.string()), digests)
    if numbers.null_count:
        raise UserError(f"`selection` (={path}) names shards that `shards` (={shards.folder}) does not hold")
    numbers_N, ordinals_N = numbers.to_numpy(), table["ordinal"].to_numpy()
    if not len(ordinals_N) or (ordinals_N < 0).any() or (ordinals_N >= np.array(shards.shard_sizes)[numbers_N]).any():
        raise UserError(f"`selection` (={path}) must name samples that its shards hold")
    return np.unique(_starts(shards)[numbers_N] + ordinals_N)
