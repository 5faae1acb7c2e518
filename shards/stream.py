"""The resumable reader: this rank's part of each global batch, in an order that depends on data and seed alone.

Global batch b covers positions [b * G, (b + 1) * G) of the endless sequence in `shards.order`; rank r of W takes the
r-th of W equal contiguous parts. A batch may straddle two epochs, so every sample is used exactly once per epoch and
every batch is full. Leaves out: weighted mixtures, remote storage.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shards.errors import DamagedSample, UserError
from shards.order import Order
from shards.reader import ShardSet
from shards.sample import Identity, Sample
from shards.sources.base import Source

ItemT = TypeVar("ItemT")
MAX_SUBSTITUTES = 100


@dataclass(frozen=True, slots=True)
class StreamedSample:
    """One sample as the stream hands it out.

    Attributes:
        position: Its place in the endless sequence; with `seed` it decides every random draw made for this sample.
    """

    identity: Identity
    sample: Sample
    epoch: int
    position: int
    seed: int

    def rng(self) -> np.random.Generator:
        """A fresh generator that depends on (seed, position) alone, whatever the rank, worker or restart."""
        return np.random.Generator(np.random.Philox(key=np.array([self.seed, self.position], dtype=np.uint64)))


@dataclass(frozen=True, slots=True)
class Damage:
    """A ledger entry: the sample due at `position` could not be used, and the next one took its place."""

    position: int
    index: int
    shard: str
    ordinal: int
    reason: str


class ShardStream(Generic[ItemT]):
    """Iterates over this rank's part of the global batches of the current epoch; iterating again goes on with the next.

    Args:
        sources: A folder that `shards build` finished, or any `Source`.
        global_batch: Samples per step over all ranks.
        workers: Processes that read ahead; 0 reads in this one. The result does not depend on it.
        transform: Makes an item of a `StreamedSample`, in the worker; may raise DamagedSample.
        collate: Makes a batch of a list of items, in the worker.
        damage_budget: Largest fraction of the corpus that may be damaged before the stream stops.

    Yields lists of `StreamedSample` where neither `transform` nor `collate` is given.

    Raises:
        UserError: sizes that do not divide, a folder that is no shard set.
        DamagedSample: while iterating, when more of the corpus is damaged than the budget allows.
    """

    def __init__(
        self,
        sources: str | Path | Source,
        global_batch: int,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        seed: int = 0,
        transform: Callable[[StreamedSample], Any] | None = None,
        collate: Callable[[list[Any]], ItemT] | None = None,
        damage_budget: float = 0.01,
    ) -> None:
        _check_sizes(global_batch, rank, world, workers, seed)
        self.source: Source = ShardSet(sources) if isinstance(sources, str | Path) else sources
        if not len(self.source):
            raise UserError(f"`sources` (={self.source.name}) must hold at least one sample")
        self.global_batch, self.rank, self.world, self.workers = global_batch, rank, world, workers
        self.seed, self.damage_budget = seed, damage_budget
        self.fingerprint = self.source.fingerprint()
        sizes = self.source.shard_sizes if isinstance(self.source, ShardSet) else [len(self.source)]
        self.order = Order(sizes, seed, self.fingerprint)
        self.ledger: list[Damage] = []
        self._damaged: set[int] = set()
        self._parts = _Parts(self.source, self.order, global_batch, rank, world, seed, transform, collate)
        self._next = 0

    @property
    def position(self) -> int:
        """Samples handed out so far over all ranks."""
        return self._next * self.global_batch

    @property
    def epoch(self) -> int:
        """The epoch that the next batch begins in."""
        return self.order.epoch(self.position)

    def __len__(self) -> int:
        """Batches left in the current epoch."""
        return -(-(self.epoch + 1) * self.order.samples // self.global_batch) - self._next

    def __iter__(self) -> Iterator[ItemT]:
        return self.batches(len(self))

    def batches(self, count: int | None = None) -> Iterator[ItemT]:
        """The next `count` batches across epochs; None never ends."""
        steps = range(self._next, 2**62 if count is None else self._next + count)
        for step, (batch, damages) in zip(steps, self._read(steps), strict=True):
            self._record(damages)
            # Counted before it is handed over: the consumer that holds batch b saves a state that goes on with b + 1.
            self._next = step + 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is, O(1) in the size of the data; batches read ahead do not count."""
        return {"position": self.position, **self._conditions()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`, at any world size and number of workers.

        Raises:
            UserError: a state of other data, another seed or another global batch, whose sequence is a different one.
        """
        for name, value in self._conditions().items():
            if state.get(name) != value:
                raise UserError(f"`{name}` (={value}) must be {state.get(name)}, as in the saved stream state")
        self._next = int(state["position"]) // self.global_batch

    def _conditions(self) -> dict[str, Any]:
        return {"seed": self.seed, "global_batch": self.global_batch, "fingerprint": self.fingerprint}

    def _read(self, steps: range) -> Iterator[tuple[ItemT, list[Damage]]]:
        if not self.workers:
            return (self._parts[step] for step in steps)
        return iter(
            DataLoader(
                self._parts,
                batch_size=None,  # One "sample" of the loader is one part of a batch; it keeps their order.
                sampler=steps,
                num_workers=self.workers,
                multiprocessing_context="fork",
                generator=torch.Generator(),  # Without one, starting workers would move the trainer's own.
            )
        )

    def _record(self, damages: list[Damage]) -> None:
        self.ledger.extend(damages)
        self._damaged.update(damage.index for damage in damages)
        if len(self._damaged) > self.damage_budget * self.order.samples:
            last = damages[-1]
            raise DamagedSample(
                f"{len(self._damaged)} of {self.order.samples} samples are damaged, more than `damage_budget` "
                f"(={self.damage_budget}) allows; the last is sample {last.ordinal} of {last.shard}: {last.reason}"
            )


class _Parts(Dataset[Any]):
    """Batch number -> this rank's part of it: all that a worker needs, and nothing that changes."""

    def __init__(
        self,
        source: Source,
        order: Order,
        global_batch: int,
        rank: int,
        world: int,
        seed: int,
        transform: Callable[[StreamedSample], Any] | None,
        collate: Callable[[list[Any]], Any] | None,
    ) -> None:
        self.source, self.order, self.seed = source, order, seed
        self.global_batch, self.size = global_batch, global_batch // world
        self.offset = rank * self.size
        self.transform, self.collate = transform, collate

    def __getitem__(self, step: int) -> tuple[Any, list[Damage]]:
        start = step * self.global_batch + self.offset
        positions = range(start, start + self.size)
        damages: list[Damage] = []
        indices = self.order.indices(positions).tolist()
        items = [self._item(position, index, damages) for position, index in zip(positions, indices, strict=True)]
        return self.collate(items) if self.collate else items, damages

    def _item(self, position: int, index: int, damages: list[Damage]) -> Any:
        """The item due at `position`, or the one of the nearest later position of the epoch whose sample is sound."""
        epoch, offset = divmod(position, self.order.samples)
        for attempt in range(min(MAX_SUBSTITUTES, self.order.samples)):
            if attempt:
                other = epoch * self.order.samples + (offset + attempt) % self.order.samples
                index = int(self.order.indices(range(other, other + 1))[0])
            try:
                item = StreamedSample(self.source.identity(index), self.source[index], epoch, position, self.seed)
                return self.transform(item) if self.transform else item
            except DamagedSample as error:
                shard, ordinal = _place(self.source, index)
                damages.append(Damage(position, index, shard, ordinal, str(error)))
        raise DamagedSample(f"{len(damages)} samples in a row are damaged; the last: {damages[-1].reason}")


def _place(source: Source, index: int) -> tuple[str, int]:
    return source.place(index) if isinstance(source, ShardSet) else (source.name, index)


def _check_sizes(global_batch: int, rank: int, world: int, workers: int, seed: int) -> None:
    if global_batch < 1 or global_batch % world:
        raise UserError(f"`global_batch` (={global_batch}) must be divisible by `world` (={world})")
    if not 0 <= rank < world:
        raise UserError(f"`rank` (={rank}) must be at least 0 and less than `world` (={world})")
    if workers < 0:
        raise UserError(f"`workers` (={workers}) must be at least 0")
    if not 0 <= seed < 2**64:
        raise UserError(f"`seed` (={seed}) must be at least 0 and less than 2**64")
