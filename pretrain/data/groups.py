"""Which images belong together, and another one of the same group: for blending drawings of one thing."""

from collections.abc import Callable, Sequence

import numpy as np

from shards.console import progress
from shards.errors import DamagedSample
from shards.sample import Identity, Sample
from shards.sources.base import Source

TRIES = 10


class Groups:
    """Where the members of each group lie; reads every sample once.

    Args:
        group: The group's number.
    """

    def __init__(self, sources: Sequence[Source], group: Callable[[Identity, Sample], int]) -> None:
        self._sources = sources
        self._places: dict[int, list[tuple[int, int]]] = {}
        with progress("group images", sum(len(source) for source in sources)) as bar:
            for number, source in enumerate(sources):
                for index in range(len(source)):
                    bar.advance()
                    try:
                        sample = source[index]
                    except DamagedSample:  # the stream will meet and report it in its own place
                        continue
                    self._places.setdefault(group(source.identity(index), sample), []).append((number, index))

    def partner(self, group: int, own: Identity, rng: np.random.Generator) -> tuple[Identity, Sample] | None:
        """A random member of `group` that is not `own`; None where a few draws find no other that is whole."""
        places = self._places.get(group, [])
        if len(places) < 2:
            return None
        for _ in range(TRIES):
            number, index = places[rng.integers(len(places))]
            identity = self._sources[number].identity(index)
            if identity == own:
                continue
            try:
                return identity, self._sources[number][index]
            except DamagedSample:
                continue
        return None
