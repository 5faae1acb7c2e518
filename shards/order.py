"""The global sample order as arithmetic: position in an endless sequence -> sample, with no list of samples in memory.

The sequence is epoch after epoch. In an epoch the shards are permuted, then the samples within windows of `WINDOW`
shards, so that a reader has few files open at a time and still mixes over thousands of samples. Both permutations are
Feistel networks keyed by (seed, epoch, fingerprint): bijections by construction, computed for any position at once.
Memory is O(shards). Shapes: N positions.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

WINDOW = 16
_ROUNDS = 4
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Order:
    """The order of one corpus.

    Args:
        sizes: Samples of each shard; a corpus without shards is one.
        fingerprint: Of the corpus: another corpus has another order.
    """

    def __init__(self, sizes: Sequence[int], seed: int, fingerprint: str, window: int = WINDOW) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.samples = int(self.sizes.sum())
        self.window = window
        self.name = f"{seed}/{fingerprint}"
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)

    def epoch(self, position: int) -> int:
        """The epoch that `position` of the endless sequence falls in."""
        return position // self.samples

    def indices(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Sample indices_N, int64, of any positions, which may straddle epochs."""
        epochs_N, offsets_N = np.divmod(np.asarray(positions, dtype=np.int64), self.samples)
        indices_N = np.empty_like(offsets_N)
        for epoch in np.unique(epochs_N).tolist():
            chosen_N = epochs_N == epoch
            indices_N[chosen_N] = self._in_epoch(epoch, offsets_N[chosen_N])
        return indices_N

    def _in_epoch(self, epoch: int, offsets_N: np.ndarray) -> np.ndarray:
        shards, ends, keys = self._epoch(epoch)
        window_ends = ends[self.window - 1 :: self.window]
        indices_N = np.empty_like(offsets_N)
        windows_N = np.searchsorted(window_ends, offsets_N, side="right")
        for window in np.unique(windows_N):
            chosen_N = windows_N == window
            first = int(window_ends[window - 1]) if window else 0
            last = int(window_ends[window]) if window < len(window_ends) else self.samples
            mixed = first + permute(offsets_N[chosen_N] - first, last - first, keys + np.uint64(window + 1))
            place = np.searchsorted(ends, mixed, side="right")
            shard = shards[place]
            indices_N[chosen_N] = self.starts[shard] + mixed - (ends[place] - self.sizes[shard])
        return indices_N

    def _plan_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The shards in this epoch's order, the running number of samples after each, and the round keys."""
        digest = hashlib.sha256(f"{self.name}/{epoch}".encode()).digest()
        keys = np.frombuffer(digest, dtype="<u8", count=_ROUNDS)
        shards = permute(np.arange(len(self.sizes)), len(self.sizes), keys)
        return shards, np.cumsum(self.sizes[shards]), keys


def permute(values_N: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Maps values_N of range(size) one to one onto range(size), int64.

    A Feistel network permutes the next power of four; values that leave the range are sent through again until they
    are back inside (cycle walking), which keeps it a bijection. At most four rounds on average.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    result = _feistel(values_N.astype(np.uint64), half, keys)
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], half, keys)
    return result.astype(np.int64)


def _feistel(values_N: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values_N >> half, values_N & mask
    for key in keys:
        left, right = right, left ^ (_hash(right, key) & mask)
    return (left << half) | right


def _hash(values_N: np.ndarray, key: np.uint64) -> np.ndarray:
    """SplitMix64's finisher: every input bit reaches every output bit. Products wrap, as meant."""
    mixed = (values_N + key) * _MIX
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
