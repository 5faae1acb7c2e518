"""The resumable reader: this rank's part of each global batch, in an order that depends on data and seed alone.

    sources, weights -> Mixture (position -> sample) -> PartReader, in workers -> this rank's part of global batch b

Global batch b covers positions [b * G, (b + 1) * G) of the endless sequence in `shards.mixture`; rank r of W takes the
r-th of W equal contiguous parts. A batch may straddle two epochs, so every sample is used exactly once per epoch and
every batch is full. A quarantined batch is passed over by all ranks: its number is not used again.
"""

import errno
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from shards.blocks import SAMPLE_BYTES, SPARE, Blocks, Room
from shards.errors import DamagedSample, Stopped, UserError
from shards.mixture import Mixture, difference
from shards.parts import Counts, Damage, Part, PartReader, StreamedSample
from shards.reader import ShardSet
from shards.sources.base import Source
from shards.transport import Transport

__all__ = ["Counts", "Damage", "ShardStream", "StreamedSample"]

ItemT = TypeVar("ItemT")
Place = str | Path | Source
Sources = Place | list[tuple[Place, float]]


class ShardStream(Generic[ItemT]):
    """Iterates over this rank's part of the global batches of the current epoch; iterating again goes on with the next.

    Args:
        sources: A folder that `shards build` finished, any `Source`, or a list of (one of these, weight): each gives
            its weight's share of the samples, evenly spread, and starts again when it is used up.
        global_batch: Samples per step over all ranks.
        workers: Processes that read ahead; 0 reads in this one. The result does not depend on it.
        transform: Makes an item of a `StreamedSample`, in the worker; may raise DamagedSample, or FilteredSample
            where a rule leaves the sample out.
        collate: Makes a batch of a list of items, in the worker.
        damage_budget: Largest fraction of this rank's share of an epoch that may be damaged before the stream stops;
            counted anew in each epoch and after a restart.
        damaged_in_a_row: So many damaged samples without a sound one between them stop the stream, too.
        quarantine: Numbers of global batches to pass over.
        ledger_file: Each entry of the ledger is appended to it as a line of JSON; ranks need files of their own.
            Batches that are read again after a restart enter their damage again, at the same positions.
        prefetch: Parts that each worker reads ahead.
        worker_init: Called with the worker's number when it starts.

    Attributes:
        ledger: What was damaged, on this rank since the start.
        counts: What became of every sample that was read, on this rank since the start.

    Yields lists of `StreamedSample` where neither `transform` nor `collate` is given. Their images are then read-only
    views of memory that is used again when nobody looks into it; `bytes(image)` is a copy that another process, forked
    while this one goes on, may keep.

    Raises:
        UserError: sizes that do not divide, a folder that is no shard set, a weight that is not positive.
        DamagedSample: while iterating, when more is damaged than the budget allows.
        Stopped: while iterating, when workers cannot be started, or one was killed; `state_dict` tells where to go on.
    """

    def __init__(
        self,
        sources: Sources,
        global_batch: int,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        seed: int = 0,
        transform: Callable[[StreamedSample], Any] | None = None,
        collate: Callable[[list[Any]], ItemT] | None = None,
        damage_budget: float = 0.01,
        damaged_in_a_row: int = 32,
        quarantine: Iterable[int] = (),
        ledger_file: Path | None = None,
        prefetch: int = 2,
        worker_init: Callable[[int], None] | None = None,
    ) -> None:
        _check_sizes(global_batch, rank, world, workers, seed)
        _check_limits(damage_budget, damaged_in_a_row, prefetch)
        weighted = sources if isinstance(sources, list) else [(sources, 1.0)]
        self.mixture = Mixture([(_opened(place), weight) for place, weight in weighted], seed)
        self.global_batch, self.workers, self.seed = global_batch, workers, seed
        self.prefetch, self.worker_init = prefetch, worker_init
        self.ledger: list[Damage] = []
        self.ledger_file = ledger_file
        self.counts = Counts()
        self._budget = _Budget(damage_budget, -(-self.mixture.samples // world))
        self._parts = PartReader(self.mixture, global_batch, rank, world, seed, transform, collate, damaged_in_a_row)
        self._next = 0
        self._quarantined: set[int] = set()
        for number in quarantine:
            self.quarantine(number)

    @property
    def position(self) -> int:
        """The place in the sequence, over all ranks, that the next batch begins at, or a quarantined one before it."""
        return self._next * self.global_batch

    @property
    def epoch(self) -> int:
        """The epoch that `position` falls in; a mixture's is as many positions as its sources have samples."""
        return self.position // self.mixture.samples

    @property
    def number(self) -> int:
        """The number of the global batch that was handed out last: what to quarantine if it does harm.

        -1 before the first.
        """
        return self._next - 1

    def quarantine(self, number: int) -> None:
        """Passes over global batch `number` from the next call of `batches` on. All ranks must be told the same.

        The batch keeps its number and positions, so nothing else of the sequence moves.

        Raises:
            UserError: a negative number.
        """
        if number < 0:
            raise UserError(f"`quarantine` (={number}) must be at least 0")
        self._quarantined.add(number)

    def __len__(self) -> int:
        """Batches left in the current epoch."""
        end = -(-(self.epoch + 1) * self.mixture.samples // self.global_batch)
        return end - self._next - sum(self._next <= number < end for number in self._quarantined)

    def __iter__(self) -> Iterator[ItemT]:
        return self.batches(len(self))

    def batches(self, count: int | None = None) -> Iterator[ItemT]:
        """The next `count` batches across epochs; None never ends."""
        numbers = _Numbers(self._next, count, frozenset(self._quarantined))
        for number, part in zip(numbers, self._read(numbers), strict=True):
            self._account(number, part)
            # Counted before it is handed over: the consumer that holds batch b saves a state that goes on with b + 1.
            self._next = number + 1
            yield part.batch

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is, O(1) in the size of the data; batches read ahead do not count. JSON values."""
        return {
            "position": self.position,
            "quarantine": sorted(self._quarantined),
            "seed": self.seed,
            "global_batch": self.global_batch,
            "sources": self.mixture.describe(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`, at any world size and number of workers. Batches quarantined in either stay so.

        Raises:
            UserError: a state of other data or weights, another seed or global batch, whose sequence is another one.
        """
        for name, value in (("seed", self.seed), ("global_batch", self.global_batch)):
            if state.get(name) != value:
                raise UserError(f"`{name}` (={value}) must be {state.get(name)}, as in the saved stream state")
        if changed := difference(self.mixture.describe(), state.get("sources", [])):
            raise UserError(f"{changed}, as in the saved stream state")
        self._next = int(state["position"]) // self.global_batch
        self._quarantined.update(state["quarantine"])

    def _read(self, numbers: "_Numbers") -> Iterator[Part]:
        whole = not (self._parts.transform or self._parts.collate)
        if not self.workers:
            return map(self._read_here if whole else self._parts.read, numbers)
        if not whole:
            return _from_workers(self._loader(self._parts, numbers))
        transport = Transport(self._parts, self.workers, self.prefetch)
        return map(transport.unpack, _from_workers(self._loader(transport, numbers)))

    def _read_here(self, number: int) -> Part:
        """Whole samples, read into memory that is used again."""
        place = self._blocks.take(range(SPARE + 1))
        return self._parts.read(number, None if place is None else Room(self._blocks.lend(place)))

    @cached_property
    def _blocks(self) -> Blocks:
        return Blocks(SPARE + 1, self._parts.size * SAMPLE_BYTES, shared=False)

    def _loader(self, parts: Dataset[Part], numbers: "_Numbers") -> DataLoader[Part]:
        return DataLoader(
            parts,
            batch_size=None,  # One "sample" of the loader is one part of a batch; it keeps their order.
            sampler=numbers,
            num_workers=self.workers,
            collate_fn=_unchanged,  # The default turns arrays into tensors and tuples into lists.
            multiprocessing_context="fork",
            generator=torch.Generator(),  # Without one, starting workers would move the trainer's own.
            prefetch_factor=self.prefetch,
            worker_init_fn=self.worker_init,
        )

    def _account(self, number: int, part: Part) -> None:
        self.ledger.extend(part.damages)
        if part.damages and self.ledger_file:
            self.ledger_file.parent.mkdir(parents=True, exist_ok=True)
            with self.ledger_file.open("a") as file:
                file.writelines(json.dumps(asdict(damage)) + "\n" for damage in part.damages)
        self.counts.add(part.counts)
        if part.stop:
            raise DamagedSample(part.stop)
        self._budget.spend(number * self.global_batch // self.mixture.samples, part.damages)


@dataclass(frozen=True)
class _Numbers:
    """The numbers of the next `count` global batches, or of all, without the quarantined ones."""

    start: int
    count: int | None
    skipped: frozenset[int]

    def __iter__(self) -> Iterator[int]:
        number, left = self.start, self.count
        while left is None or left > 0:
            if number not in self.skipped:
                yield number
                left = None if left is None else left - 1
            number += 1


class _Budget:
    """How much of this rank's share of an epoch may be damaged."""

    def __init__(self, fraction: float, share: int) -> None:
        self.fraction, self.share = fraction, share
        self.epoch = -1
        self.damaged: set[tuple[str, int]] = set()

    def spend(self, epoch: int, damages: list[Damage]) -> None:
        if epoch != self.epoch:
            self.epoch, self.damaged = epoch, set()
        self.damaged.update((damage.source, damage.index) for damage in damages)
        if damages and len(self.damaged) > self.fraction * self.share:
            last = damages[-1]
            raise DamagedSample(
                f"{len(self.damaged)} of {self.share} samples are damaged, more than `damage_budget` "
                f"(={self.fraction}) allows; the last is sample {last.ordinal} of {last.shard}: {last.reason}"
            )


def _opened(place: Place) -> Source:
    return ShardSet(place) if isinstance(place, str | Path) else place


def _from_workers(loader: DataLoader[Part]) -> Iterator[Part]:
    try:
        parts = iter(loader)
    except OSError as error:  # Their locks take a page of /dev/shm, which may be full.
        where = " in /dev/shm" if error.errno == errno.ENOSPC else ""
        raise Stopped(f"`workers` (={loader.num_workers}) could not be started: {error.strerror}{where}") from error
    try:
        yield from parts
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        reason = str(error.__cause__ or error).strip().rstrip(".")
        raise Stopped(f"a worker of the stream died, and the batches it was reading with it: {reason}") from error


def _unchanged(part: Any) -> Any:
    return part


def _check_sizes(global_batch: int, rank: int, world: int, workers: int, seed: int) -> None:
    if global_batch < 1:
        raise UserError(f"`global_batch` (={global_batch}) must be at least 1")
    if not 0 <= rank < world:
        raise UserError(f"`rank` (={rank}) must be at least 0 and less than `world` (={world})")
    if global_batch % world:
        raise UserError(f"`global_batch` (={global_batch}) must be divisible by `world` (={world})")
    if workers < 0:
        raise UserError(f"`workers` (={workers}) must be at least 0")
    if not 0 <= seed < 2**64:
        raise UserError(f"`seed` (={seed}) must be at least 0 and less than 2**64")


def _check_limits(damage_budget: float, damaged_in_a_row: int, prefetch: int) -> None:
    if not 0 <= damage_budget <= 1:
        raise UserError(f"`damage_budget` (={damage_budget}) must be between 0 and 1")
    if damaged_in_a_row < 1:
        raise UserError(f"`damaged_in_a_row` (={damaged_in_a_row}) must be at least 1")
    if prefetch < 1:
        raise UserError(f"`prefetch` (={prefetch}) must be at least 1")
