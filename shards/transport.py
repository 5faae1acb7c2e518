"""How whole samples come from a worker process: their bytes through memory that both map, the rest through a pipe.

    worker: file -> place -> checked there -> pickled without the bytes -> pipe -> consumer: views of the place

A pipe takes each byte four times (pickled, written, read, unpickled); here only the kernel's copy out of the file is
left. `shards.blocks` says when a place is used again.
"""

import pickle
from dataclasses import dataclass, fields
from io import BytesIO
from operator import attrgetter
from typing import Any

from torch.utils.data import Dataset, get_worker_info

from shards.blocks import SAMPLE_BYTES, SPARE, Blocks, Room
from shards.parts import Part, PartReader, StreamedSample
from shards.sample import Sample

SHORT = 512
"""Buffers of fewer bytes are pickled: their place would cost more."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of samples without its long buffers: (offset, size, read-only) of each in a place."""

    pickled: bytes
    place: int
    spans: list[tuple[int, int, bool]]


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
        held = self.blocks.lent(self._places(packed.place // self.places)) >= SPARE
        memory = self.blocks.view(packed.place) if held else self.blocks.lend(packed.place)
        views = [memory[offset : offset + size] for offset, size, _ in packed.spans]
        buffers: list[Any] = [
            (bytes(view) if readonly else bytearray(view)) if held else view.toreadonly() if readonly else view
            for view, (_, _, readonly) in zip(views, packed.spans, strict=True)
        ]
        part.batch = pickle.loads(packed.pickled, buffers=buffers)
        if held:
            self.blocks.free(packed.place)
        return part

    def _places(self, worker: int) -> range:
        return range(worker * self.places, (worker + 1) * self.places)


def _packed(batch: Any, place: int, room: Room) -> Packed:
    """What is in the room stays there, other long buffers are copied to it; what does not fit is pickled."""
    spans: list[tuple[int, int, bool]] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        """True: to be pickled."""
        view = buffer.raw()
        if len(view) < SHORT:
            return True
        offset = room.offset(view)
        if offset is None:
            copy = room.take(len(view))
            if copy is None:
                return True
            copy[:] = view
            offset = room.offset(copy)
        assert offset is not None
        spans.append((offset, len(view), view.readonly))
        return False

    pickled = BytesIO()
    _SamplePickler(pickled, protocol=5, buffer_callback=keep).dump(batch)
    return Packed(pickled.getvalue(), place, spans)


_VALUES = {kind: attrgetter(*(field.name for field in fields(kind))) for kind in (StreamedSample, Sample)}


class _SamplePickler(pickle.Pickler):
    """Leaves the images of samples out, as pickle does with arrays; and builds both records by their constructors."""

    def reducer_override(self, obj: Any) -> Any:
        values = _VALUES.get(type(obj))
        if values is None:
            return NotImplemented
        return type(obj), tuple(
            pickle.PickleBuffer(value) if type(value) in (bytes, memoryview) else value for value in values(obj)
        )
