"""How whole samples come from a worker process: their bytes through memory that both map, the rest through a pipe.

    worker: file -> place -> checked there -> pickled without the bytes -> pipe -> consumer: views of the place

A pipe takes each byte four times (pickled, written, read, unpickled); here only the kernel's copy out of the file is
left. `shards.blocks` says when a place is used again.
"""

import pickle
from dataclasses import dataclass, fields
from io import BytesIO
from operator import attrgetter
from typing import Any, TypeAlias

from torch.utils.data import Dataset, get_worker_info

from shards.blocks import SAMPLE_BYTES, SPARE, Blocks, Room
from shards.parts import Part, PartReader, StreamedSample
from shards.sample import Encoded, Identity, Sample

SHORT = 512
"""Buffers of fewer bytes are pickled: their place would cost more."""


Span: TypeAlias = tuple[int, int]
"""Offset and size of bytes that lie in the place."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch without its long bytes: `rows` is pickled; `arrays` are the memory of its arrays."""

    rows: bytes
    place: int
    arrays: list[Span]


class Transport(Dataset[Part]):
    """Number of a global batch -> this rank's part of it, packed; for workers that are forked after this was made.

    Args:
        ahead: Batches that a worker reads ahead. It has a place for each, one that is being unpacked, and `SPARE`.
    """

    def __init__(self, parts: PartReader, workers: int, ahead: int) -> None:
        self.parts, self.places = parts, ahead + 1 + SPARE
        self.blocks = Blocks(workers * self.places, parts.size * SAMPLE_BYTES, shared=True)

    def __getitem__(self, number: int) -> Part:
        """In a worker. Without a free place, or a batch to put there, the part goes through the pipe as it is."""
        worker = get_worker_info()
        assert worker is not None
        place = self.blocks.take(self._places(worker.id))
        if place is None:
            return self.parts[number]
        room = Room(self.blocks.view(place))
        part = self.parts.read(number, room)
        if part.stop:
            self.blocks.free(place)
        else:
            part.batch = _packed(part.batch, place, room)
        return part

    def unpack(self, part: Part) -> Part:
        """In the consumer: the part as it was, looking into its place; or with copies, where many places are held."""
        packed = part.batch
        if not isinstance(packed, Packed):
            return part
        if self.blocks.lent(self._places(packed.place // self.places)) < SPARE:
            part.batch = _unpacked(packed, self.blocks.lend(packed.place), copied=False)
        else:
            part.batch = _unpacked(packed, self.blocks.view(packed.place), copied=True)
            self.blocks.free(packed.place)
        return part

    def _places(self, worker: int) -> range:
        return range(worker * self.places, (worker + 1) * self.places)


_VALUES = attrgetter(*(field.name for field in fields(Sample)))


def _packed(batch: list[StreamedSample], place: int, room: Room) -> Packed:
    """Long bytes stay in the room or are copied to it, as far as there is any; the rest is pickled."""
    arrays: list[Span] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """Of an array. True: to be pickled."""
        span = _span(buffer.raw(), room)
        if span:
            arrays.append(span)
        return span is None

    rows = BytesIO()
    pickle.Pickler(rows, protocol=5, buffer_callback=keep).dump([_row(item, room) for item in batch])
    return Packed(rows.getvalue(), place, arrays)


def _row(item: StreamedSample, room: Room) -> tuple[Any, ...]:
    """Plain values, which take pickle a third of the time; a sample of a source's own class stays one."""
    where, sample = (*item.identity, item.epoch, item.position, item.seed), item.sample
    if type(sample) is not Sample:
        return where, sample
    key, image, *rest = _VALUES(sample)
    return where, key, _span(image, room) or bytes(image), *rest


def _span(content: Encoded, room: Room) -> Span | None:
    offset = room.offset(content) if len(content) >= SHORT else None
    return None if offset is None else (offset, len(content))


def _unpacked(packed: Packed, memory: memoryview, *, copied: bool) -> list[StreamedSample]:
    images = memory.toreadonly()

    def item(where: tuple[Any, ...], *values: Any) -> StreamedSample:
        if len(values) == 1:
            sample = values[0]
        else:
            key, image, *rest = values
            if isinstance(image, tuple):
                image = images[image[0] : image[0] + image[1]]
            sample = Sample(key, bytes(image) if copied else image, *rest)
        shard, ordinal, *place = where
        return StreamedSample(Identity(shard, ordinal), sample, *place)

    views = (memory[offset : offset + size] for offset, size in packed.arrays)
    rows = pickle.loads(packed.rows, buffers=map(bytearray, views) if copied else views)
    return [item(*row) for row in rows]
