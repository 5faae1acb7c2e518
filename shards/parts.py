"""One rank's part of one global batch: what a worker process makes, and the account it gives of it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from shards.blocks import Room
from shards.errors import DamagedSample, FilteredSample
from shards.mixture import Mixture, Turn
from shards.sample import Identity, Sample
from shards.sources.base import expect, place, reader

FILTERED_IN_A_ROW = 1000
PLANNED = 1024
"""Positions whose samples are looked up together, of this part and those that come after it."""


@dataclass(frozen=True, slots=True)
class StreamedSample:
    """One sample as the stream hands it out.

    Attributes:
        epoch: How often the sample's source has been used up before.
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
    source: str
    index: int
    shard: str
    ordinal: int
    reason: str


@dataclass(slots=True)
class Counts:
    """What became of every sample that was read: read = yielded + substituted + all filtered.

    Attributes:
        substituted: Damaged, so that another took their place.
        filtered: By reason; another took their place, too.
    """

    yielded: int = 0
    substituted: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    read: int = 0

    def add(self, other: "Counts") -> None:
        self.read += other.read
        self.yielded += other.yielded
        self.substituted += other.substituted
        self.filtered.update(other.filtered)


@dataclass(slots=True)
class Part:
    """A rank's part of a global batch. `stop` says why there is no batch; workers return it, for a clean message."""

    batch: Any = None
    counts: Counts = field(default_factory=Counts)
    damages: list[Damage] = field(default_factory=list)
    stop: str = ""


@dataclass(frozen=True)
class PartReader(Dataset[Part]):
    """Number of a global batch -> this rank's part of it: all that a worker needs, and nothing that changes it."""

    mixture: Mixture
    global_batch: int
    rank: int
    world: int
    seed: int
    transform: Callable[[StreamedSample], Any] | None
    collate: Callable[[list[Any]], Any] | None
    damaged_in_a_row: int
    _planned: dict[int, list[tuple[Turn, int]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Samples of a part."""
        return self.global_batch // self.world

    def __getitem__(self, number: int) -> Part:
        return self.read(number)

    def read(self, number: int, room: Room | None = None) -> Part:
        """The part; its images lie in `room` as far as they fit, where the source reads into memory."""
        due, part = self._due(number), Part()
        try:
            for at, source in enumerate(self.mixture.sources):
                expect(source, (index for turn, index in due if turn.source == at))
            reads = [reader(source, room) for source in self.mixture.sources]
            start = self._start(number)
            items = [
                self._item(start + at, turn, index, reads[turn.source], part) for at, (turn, index) in enumerate(due)
            ]
        except _Unusable as error:
            part.stop = str(error)
            return part
        part.batch = self.collate(items) if self.collate else items
        return part

    def _start(self, number: int) -> int:
        return number * self.global_batch + self.rank * self.size

    def _due(self, number: int) -> list[tuple[Turn, int]]:
        """What `mixture.due` says of the part's positions, and ahead for the parts that this process reads next."""
        if number not in self._planned:
            self._planned.clear()
            worker = get_worker_info()
            step = worker.num_workers if worker else 1
            numbers = range(number, number + step * max(1, PLANNED // self.size), step)
            positions_PN = np.add.outer([self._start(each) for each in numbers], np.arange(self.size))
            due = self.mixture.due(positions_PN.ravel())
            self._planned.update((each, due[at * self.size :][: self.size]) for at, each in enumerate(numbers))
        return self._planned.pop(number)

    def _item(self, position: int, turn: Turn, index: int, read: Callable[[int], Sample], part: Part) -> Any:
        """The item due at `position`, or of the nearest later turn of the source's epoch whose sample can be used."""
        source = self.mixture.sources[turn.source]
        damaged = filtered = 0
        for attempt in range(len(source)):
            if attempt:
                index = self.mixture.substitute(turn, attempt)
            part.counts.read += 1
            try:
                sample = read(index)
                streamed = StreamedSample(source.identity(index), sample, self.mixture.epoch(turn), position, self.seed)
                item = self.transform(streamed) if self.transform else streamed
            except DamagedSample as error:
                part.damages.append(Damage(position, source.name, index, *place(source, index), str(error)))
                part.counts.substituted += 1
                damaged += 1
            except FilteredSample as error:
                part.counts.filtered[str(error)] += 1
                damaged, filtered = 0, filtered + 1
            else:
                part.counts.yielded += 1
                return item
            if damaged >= self.damaged_in_a_row or filtered >= FILTERED_IN_A_ROW:
                break
        raise _Unusable(_why(source.name, damaged, filtered, part))


class _Unusable(Exception):
    """No sample near a position can be used."""


def _why(name: str, damaged: int, filtered: int, part: Part) -> str:
    if not filtered:
        return f"{damaged} samples of {name} in a row are damaged; the last: {part.damages[-1].reason}"
    reason = part.counts.filtered.most_common(1)[0][0]
    return f"{filtered + damaged} samples of {name} in a row are filtered or damaged; most are filtered: {reason}"
