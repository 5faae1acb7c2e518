"""How whole samples come from a worker process: their bytes through shared memory, the rest through the loader's pipe.

A pipe takes each byte four times (pickled, written, read, unpickled). Here the worker copies an image into a place of
memory that both processes map and the consumer copies it out; the place is used again, so the kernel clears no pages.
"""

import mmap
import pickle
from dataclasses import dataclass, fields
from io import BytesIO
from operator import attrgetter
from typing import Any

from torch.utils.data import get_worker_info

from shards.parts import Part, StreamedSample
from shards.sample import Sample

SAMPLE_BYTES = 1 << 18
"""Room for a sample. Only what is used takes memory; a batch that is larger goes through the pipe."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of samples without its long buffers: `sizes` of them lie in `place`, one behind the other."""

    pickled: bytes
    place: int
    sizes: list[tuple[int, bool]]


class Transport:
    """Places for batches, some for each worker. Made before the workers are forked, so that they share it.

    Args:
        ahead: Batches that a worker reads ahead; it has a place for each, one that is being read and one being written.
    """

    def __init__(self, workers: int, ahead: int, samples: int) -> None:
        self.places, self.size = ahead + 2, samples * SAMPLE_BYTES
        self._taken = mmap.mmap(-1, workers * self.places)
        self._memory = memoryview(mmap.mmap(-1, workers * self.places * self.size))

    def pack(self, part: Part) -> Part:
        """In a worker: moves the samples of a part into shared memory, where there is room."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = BytesIO()
        _SamplePickler(pickled, protocol=5, buffer_callback=buffers.append).dump(part.batch)
        views = [buffer.raw() for buffer in buffers]
        place = self._free_place()
        if place is None or sum(map(len, views)) > self.size:
            return part
        self._taken[place] = 1
        end = place * self.size
        for view in views:
            start, end = end, end + len(view)
            self._memory[start:end] = view
        part.batch = Packed(pickled.getvalue(), place, [(len(view), view.readonly) for view in views])
        return part

    def unpack(self, part: Part) -> Part:
        """In the consumer: the part as it was, and its place is free again."""
        packed = part.batch
        if isinstance(packed, Packed):
            end, buffers = packed.place * self.size, []
            for size, readonly in packed.sizes:
                start, end = end, end + size
                buffers.append((bytes if readonly else bytearray)(self._memory[start:end]))
            part.batch = pickle.loads(packed.pickled, buffers=buffers)
            self._taken[packed.place] = 0
        return part

    def _free_place(self) -> int | None:
        worker = get_worker_info()
        assert worker is not None
        places = range(worker.id * self.places, (worker.id + 1) * self.places)
        return next((place for place in places if not self._taken[place]), None)


_VALUES = {kind: attrgetter(*(field.name for field in fields(kind))) for kind in (StreamedSample, Sample)}


class _SamplePickler(pickle.Pickler):
    """Leaves the images of samples out, as pickle does with arrays; and builds both records by their constructors."""

    def reducer_override(self, obj: Any) -> Any:
        values = _VALUES.get(type(obj))
        if values is None:
            return NotImplemented
        return type(obj), tuple(pickle.PickleBuffer(value) if type(value) is bytes else value for value in values(obj))
