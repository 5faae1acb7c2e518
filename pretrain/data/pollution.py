"""Texts of which a part belongs to another image (OSCAR, arXiv:2004.06165; VinVL, arXiv:2101.00529; VisualBERT).

The other image is any of the corpus, drawn by the generator of the sample's place in the order: neither ranks nor
workers change what is polluted with what.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pretrain.objectives.config import PollutionConfig
from shards.errors import DamagedSample
from shards.sample import Identity, Sample
from shards.sources.base import Source

TRIES = 10


class Parts(NamedTuple):
    """Whose caption and whose second segment a text has; `label` is 0 where both are the image's own."""

    caption: Sample
    second: Sample
    label: int


def pollute(
    sample: Sample, config: PollutionConfig, other: Callable[[], Sample | None], rng: np.random.Generator
) -> Parts:
    """Replaces a part of the text with the configured probability.

    Args:
        other: Draws another image's sample; None where there is none.
    """
    if rng.random() >= config.probability or (wrong := other()) is None:
        return Parts(sample, sample, 0)
    if config.kind == "second":
        return Parts(sample, wrong, 1)
    if config.kind == "caption":
        return Parts(wrong, sample, 1)
    return Parts(wrong, sample, 1) if rng.random() < 0.5 else Parts(sample, wrong, 2)


def draw_other(
    sources: Sequence[Source], group: Callable[[Identity, Sample], int], own: int, rng: np.random.Generator
) -> Sample | None:
    """A random sample of another group than `own`; None where a few tries find none that is whole."""
    ends = np.cumsum([len(source) for source in sources])
    for _ in range(TRIES):
        place = int(rng.integers(ends[-1]))
        number = int(np.searchsorted(ends, place, side="right"))
        source, index = sources[number], place - int(ends[number]) + len(sources[number])
        try:
            sample = source[index]
        except DamagedSample:  # the stream will meet and report it in its own place
            continue
        if group(source.identity(index), sample) != own:
            return sample
    return None
