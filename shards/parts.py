"""One rank's part of one global batch: what a worker process makes, and the account it gives of it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from shards.errors import DamagedSample, FilteredSample
from shards.mixture import Mixture, Turn
from shards.sample import Identity, Sample
from shards.sources.base import expect, place

FILTERED_IN_A_ROW = 1000


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
    """Number of a global batch -> this rank's part of it: all that a worker needs, and nothing that changes."""

    mixture: Mixture
    global_batch: int
    rank: int
    world: int
    seed: int
    transform: Callable[[StreamedSample], Any] | None
    collate: Callable[[list[Any]], Any] | None
    damaged_in_a_row: int

    @property
    def size(self) -> int:
        """Samples of a part."""
        return self.global_batch // self.world

    def __getitem__(self, number: int) -> Part:
        start = number * self.global_batch + self.rank * self.size
        positions = range(start, start + self.size)
        part = Part()
        try:
            due = self.mixture.due(positions)
            for number, source in enumerate(self.mixture.sources):
                expect(source, (index for turn, index in due if turn.source == number))
            items = [self._item(position, *each, part) for position, each in zip(positions, due, strict=True)]
        except _Unusable as error:
            part.stop = str(error)
            return part
        part.batch = self.collate(items) if self.collate else items
        return part

    def _item(self, position: int, turn: Turn, index: int, part: Part) -> Any:
        """The item due at `position`, or of the nearest later turn of the source's epoch whose sample can be used."""
        source = self.mixture.sources[turn.source]
        damaged = filtered = 0
        for attempt in range(len(source)):
            if attempt:
                index = self.mixture.substitute(turn, attempt)
            part.counts.read += 1
            try:
                sample = source[index]
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
