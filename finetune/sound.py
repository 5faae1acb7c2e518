"""Batches of a source without what is damaged: work that reads several samples must not fail for one of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from shards.console import Progress, progress
from shards.errors import DamagedSample
from shards.sample import Sample
from shards.sources.base import Source

SAID = 5  # damaged samples that are named
Made = TypeVar("Made")


class Part(NamedTuple, Generic[Made]):
    """The places of sound samples, and what the work made of them."""

    indices: list[int]
    made: Made


def sound_parts(
    title: str, source: Source, indices: Sequence[int], batch: int, work: Callable[[list[Sample]], Made]
) -> Iterator[Part[Made]]:
    """`work` on each batch in one piece; where a sample of it is damaged, one by one without it.

    Raises:
        DamagedSample: none of the samples could be read.
    """
    sound = False
    with progress(title, len(indices)) as bar:
        tell = _few(bar)
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            for found in _sound(source, part, work, tell):
                sound = True
                yield found
            bar.advance(len(part))
    if not sound:
        raise DamagedSample(f"none of the {len(indices)} samples of {source.name} could be read")


def _sound(
    source: Source, indices: Sequence[int], work: Callable[[list[Sample]], Made], tell: Callable[[str], None]
) -> Iterator[Part[Made]]:
    try:
        yield Part(list(indices), work([source[index] for index in indices]))
    except DamagedSample as error:
        if len(indices) == 1:
            tell(f"left out: sample {indices[0]}: {error}")
            return
        for index in indices:
            yield from _sound(source, [index], work, tell)


def _few(bar: Progress) -> Callable[[str], None]:
    """Says the first lines and keeps the rest to itself."""
    left = iter(range(SAID))
    return lambda line: bar.say(line) if next(left, None) is not None else None
