"""Memory for the bytes of a few batches, used again and again: a batch has its place until its last view is gone.

    Blocks.room -> Room -> views that a source reads into -> samples that look into them -> nobody looks: free again

Fresh memory costs more than reading into it: the kernel clears each page when it is first touched. The mapping has no
name, so nothing is left of it when the processes that have it are killed, and the size of /dev/shm does not matter.
"""

import mmap
import platform
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress

import numpy as np

SAMPLE_BYTES = 1 << 20
"""Room for a sample. Only what is used takes memory; what does not fit is kept elsewhere."""
SPARE = 3
"""Batches that the consumer may look into at a time: the last, the one it was just given, and one for a pipeline of its
own. What comes while all are held is copied, so that a sample that is kept for ever keeps no place that is needed."""
_ALIGNED = 64
_LINUX = sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64"}
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if _LINUX else 0)
"""Python has it from 3.13 on. Without it the whole mapping would count as memory that is promised."""


class Room:
    """The place of one batch while it is being read: hands out memory from the front."""

    def __init__(self, memory: memoryview) -> None:
        self._memory, self._used = memory, 0
        self._filled: dict[int, tuple[memoryview, int]] = {}

    def fill(self, size: int, read_into: Callable[[memoryview], int]) -> memoryview | None:
        """A read-only view of what `read_into` wrote to the next `size` bytes; None where the place is full."""
        start, end = self._used, self._used + size
        if end > len(self._memory):
            return None
        self._used = -(-end // _ALIGNED) * _ALIGNED
        view = self._memory[start : start + read_into(self._memory[start:end])].toreadonly()
        self._filled[id(view)] = view, start  # The view is kept, so that its number is not used again.
        return view

    def offset(self, content: bytes | memoryview) -> int | None:
        """Where in the place `content` lies, which is copied there if it does not; None where the place is full."""
        known = self._filled.get(id(content))
        if known is None:
            copy = self.fill(len(content), lambda view: _copy(content, view))
            known = None if copy is None else self._filled[id(copy)]
        return None if known is None else known[1]


class _Hashable(np.ndarray):
    """Views of it have a hash, which is that of their bytes, only if it has one."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Blocks:
    """So many places of so many bytes in one mapping.

    Args:
        shared: Processes that are forked later see the same bytes; otherwise theirs are their own.
    """

    def __init__(self, places: int, size: int, *, shared: bool) -> None:
        flags = (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | mmap.MAP_ANONYMOUS | _NO_RESERVE
        self.size = size
        self._taken = mmap.mmap(-1, places, flags)
        self._memory: mmap.mmap | None = None
        with suppress(OSError):  # A limit of address space: all that is handed over goes the slower way.
            self._memory = mmap.mmap(-1, places * size, flags)
        self._lent: dict[int, weakref.ref[np.ndarray]] = {}

    def take(self, places: range) -> int | None:
        """A free one of `places`, which is no longer free; None where there is none."""
        if self._memory is None:
            return None
        place = next((place for place in places if not self._taken[place]), None)
        if place is not None:
            self._taken[place] = 1
        return place

    def free(self, place: int) -> None:
        self._lent.pop(place, None)
        self._taken[place] = 0

    def lent(self, places: range) -> int:
        """How many of `places` somebody looks into."""
        return sum(place in self._lent for place in places)

    def view(self, place: int) -> memoryview:
        """The memory of a place that is freed by other means."""
        return self._array(place).data

    def lend(self, place: int) -> memoryview:
        """The memory of a place that is free again when neither this view nor any made of it is left."""
        array = self._array(place)
        self._lent[place] = weakref.ref(array, lambda _: self.free(place))
        return array.data

    def _array(self, place: int) -> np.ndarray:
        assert self._memory is not None
        return np.frombuffer(self._memory, np.uint8, self.size, place * self.size).view(_Hashable)


def _copy(content: bytes | memoryview, view: memoryview) -> int:
    view[:] = content
    return len(view)
