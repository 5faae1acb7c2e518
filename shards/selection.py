"""A shard set without the samples that a selection list leaves out, as a source of its own.

    shards filter DIR --list FILE -> FILE -> Selected(ShardSet(DIR), FILE) -> stream

A selection list is a parquet file with the columns `shard` (string: the first 16 hex digits of the shard's sha256, as
in a sample's identity) and `ordinal` (integer: place in the shard), one row for each sample that is kept, in any order.
Memory is one bit per sample of the shard set.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UserError
from shards.reader import ShardSet, locate
from shards.sample import Identity, Sample
from shards.storage import write_atomically

DIGEST = 16
EXPANDED = 64
"""Shards whose kept ordinals are held as a list at a time: four windows of the stream's order."""


def write_selection(shards: ShardSet, kept_N: np.ndarray, path: Path) -> None:
    """Writes the list of the samples with the indices `kept_N`, int64 [N]."""
    starts_S = np.array([0, *accumulate(shards.shard_sizes)])
    number_N = np.searchsorted(starts_S, kept_N, side="right") - 1
    digests = pa.array([entry.sha256[:DIGEST] for entry in shards.manifest.shards])
    columns = {
        "shard": digests.take(pa.array(number_N)),
        "ordinal": pa.array(kept_N - starts_S[number_N], pa.int64()),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


class Selected:
    """The kept samples of `shards`, in their order.

    Raises:
        UserError: a list of another form, rows that name no sample of the shard set, or no row at all.
    """

    def __init__(self, shards: ShardSet, selection: str | Path) -> None:
        self.shards, self.name = shards, f"{shards.name} by {Path(selection).name}"
        self._bits = _read_bits(shards, Path(selection))
        self.shard_sizes = [int(np.unpackbits(bits).sum()) for bits in self._bits]
        self._starts = [0, *accumulate(self.shard_sizes)]
        self._firsts = [0, *accumulate(shards.shard_sizes)]
        if not len(self):
            raise UserError(f"`selection` (={selection}) must keep at least one sample")
        self._ordinals = lru_cache(maxsize=EXPANDED)(self._expand)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_ordinals"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._ordinals = lru_cache(maxsize=EXPANDED)(self._expand)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        return self.shards[self._index(index)]

    def expect(self, indices: Iterable[int]) -> None:
        self.shards.expect(map(self._index, indices))

    def identity(self, index: int) -> Identity:
        return self.shards.identity(self._index(index))

    def place(self, index: int) -> tuple[str, int]:
        return self.shards.place(self._index(index))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.shards.fingerprint().encode())
        for bits in self._bits:
            digest.update(bits.tobytes())
        return digest.hexdigest()

    def _index(self, index: int) -> int:
        """Index in the whole shard set."""
        number, place = locate(self._starts, index)
        return self._firsts[number] + int(self._ordinals(number)[place])

    def _expand(self, number: int) -> np.ndarray:
        return np.flatnonzero(np.unpackbits(self._bits[number]))


def _read_bits(shards: ShardSet, path: Path) -> list[np.ndarray]:
    """One bit per sample of each shard, uint8 [ceil(samples / 8)], set for the kept ones."""
    sizes = shards.shard_sizes
    numbers = {entry.sha256[:DIGEST]: number for number, entry in enumerate(shards.manifest.shards)}
    bits = [np.zeros(-(-size // 8), dtype=np.uint8) for size in sizes]
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["shard", "ordinal"], use_threads=False):
                _set_bits(bits, batch, numbers, sizes, path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"`selection` (={path}) is not a selection list: {' '.join(str(error).split())}") from None
    return bits


def _set_bits(
    bits: list[np.ndarray], batch: pa.RecordBatch, numbers: dict[str, int], sizes: list[int], path: Path
) -> None:
    if batch.schema.names != ["shard", "ordinal"]:
        raise UserError(f"`selection` (={path}) must have the columns `shard` and `ordinal`")
    digests = batch["shard"].dictionary_encode()
    ordinals_N, codes_N = batch["ordinal"].to_numpy(), digests.indices.to_numpy()
    for code, digest in enumerate(digests.dictionary.to_pylist()):
        chosen = ordinals_N[codes_N == code]
        number = numbers.get(digest)
        if number is None or chosen.min() < 0 or chosen.max() >= sizes[number]:
            wrong = "" if number is None else f", sample {chosen.max()}"
            raise UserError(f"`selection` (={path}) names shard {digest}{wrong}, which the shard set does not have")
        kept = np.unpackbits(bits[number], count=sizes[number])
        kept[chosen] = 1
        bits[number] = np.packbits(kept)
