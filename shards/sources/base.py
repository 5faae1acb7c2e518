"""What a corpus has to offer: a known length, random access, and a fingerprint of what defines it."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

from shards.blocks import Room
from shards.sample import Identity, Sample


class Source(Protocol):
    """A finite corpus with random access. Building, streaming, fine-tuning and evaluation all read this.

    `source[i]` reads and returns one sample; it raises `shards.errors.DamagedSample` where the bytes cannot be had.
    """

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def identity(self, index: int) -> Identity:
        """Stable name of sample `index`."""
        ...

    def fingerprint(self) -> str:
        """Hex sha256 of everything that decides the samples; equal fingerprints mean equal corpora."""
        ...


@runtime_checkable
class Sharded(Protocol):
    """A source whose samples lie in shards, which are better read near each other."""

    @property
    def shard_sizes(self) -> Sequence[int]:
        """Samples of each shard, in order."""
        ...

    def place(self, index: int) -> tuple[str, int]:
        """The name of the shard and the ordinal in it, for messages."""
        ...


@runtime_checkable
class Anticipating(Protocol):
    """A source that reads faster when it knows what comes."""

    def expect(self, indices: Iterable[int]) -> None:
        """These samples are asked for next."""
        ...


@runtime_checkable
class ReadsInto(Protocol):
    """A source that reads images into memory that it is given."""

    def read_into(self, index: int, room: Room) -> Sample:
        """As `source[index]`; the image is a view of the room, where there was any."""
        ...


def reader(source: Source, room: Room | None) -> Callable[[int], Sample]:
    """What reads a sample of `source`, into `room` where both can."""
    if room is None or not isinstance(source, ReadsInto):
        return source.__getitem__
    return partial(source.read_into, room=room)


def expect(source: Source, indices: Iterable[int]) -> None:
    """Tells `source` what comes, if it wants to know."""
    if isinstance(source, Anticipating):
        source.expect(indices)


def shard_sizes(source: Source) -> Sequence[int]:
    """Samples of each shard; a source without shards is one."""
    return source.shard_sizes if isinstance(source, Sharded) else [len(source)]


def place(source: Source, index: int) -> tuple[str, int]:
    """Where sample `index` lies, for messages."""
    return source.place(index) if isinstance(source, Sharded) else (source.name, index)
