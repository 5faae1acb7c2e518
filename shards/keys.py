"""Whether keys repeat across the shards of a set, found from the indices in bounded memory."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shards.manifest import read_index

DIGESTS_AT_A_TIME = 1 << 24
"""8 bytes each; a larger set takes several passes over its indices, each of which looks at some of the digests."""


def repeated_key(indices: Sequence[Path], samples: int) -> str | None:
    """A key that two samples share, or None. Reads the key columns of the `indices` of a set of so many samples."""
    passes = -(-samples // DIGESTS_AT_A_TIME)
    for turn in range(passes):
        digests = np.concatenate([_digests(index, passes, turn) for index in indices])
        values, counts = np.unique(digests, return_counts=True)
        suspects = set(values[counts > 1].tolist())
        if suspects and (key := _first_repeated(indices, suspects)):
            return key
    return None


def _digests(index: Path, passes: int, turn: int) -> np.ndarray:
    digests = np.array([_digest(key) for key in _keys(index)], dtype=np.uint64)
    return digests[digests % np.uint64(passes) == turn]


def _first_repeated(indices: Sequence[Path], suspects: set[int]) -> str | None:
    """Compares the keys themselves: two keys may share 64 bits."""
    seen: set[str] = set()
    for index in indices:
        for key in _keys(index):
            if _digest(key) in suspects:
                if key in seen:
                    return key
                seen.add(key)
    return None


def _keys(index: Path) -> list[str]:
    return read_index(index)["key"].to_pylist()


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
