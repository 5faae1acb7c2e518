"""Decoded images that stay in memory: of a small corpus every epoch but the first is spared the decoding."""

from collections.abc import Callable

from torch import Tensor

from shards.sample import Identity


class KeptPixels:
    """Keeps what it is given until `limit` bytes are full; what comes later is made anew each time.

    Nothing is ever thrown out: the order goes through the whole corpus before it repeats, so the oldest image is not
    the least likely to be needed. Each worker has its own.
    """

    def __init__(self, limit: int) -> None:
        self._left, self._kept = limit, dict[Identity, Tensor]()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, identity: Identity, make: Callable[[], Tensor]) -> Tensor:
        """The image's pixels, uint8 [S, S, 3], not to be written into; `make` is called where they are not kept."""
        if identity in self._kept:
            return self._kept[identity]
        pixels_HWC = make()
        if pixels_HWC.nbytes <= self._left:
            self._left -= pixels_HWC.nbytes
            self._kept[identity] = pixels_HWC
        return pixels_HWC
