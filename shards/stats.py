"""What is in a shard set, in numbers.

indices -> counts, sizes, caption lengths (exact, all samples);  records of samples spread evenly -> tags, regions, ...
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import DamagedSample
from shards.filters import language_of
from shards.manifest import FilterReport, read_index
from shards.reader import ShardSet
from shards.sample import ARRAYS, Sample

SIDES = (64, 128, 200, 256, 320, 384, 448, 512, 640, 768, 1024, 2048)
"""Pixels; the last bin has no end."""
WORDS = (2, 3, 5, 9, 13, 17, 25, 33, 65, 129)
ASPECTS = (1.01, 1.2, 1.4, 1.6, 2.0, 3.0, 5.0)


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values lie below the first edge, between each two, and from the last on."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    median: float
    smallest: float
    largest: float

    def bins(self) -> list[tuple[str, int]]:
        """A label for people and the count of each bin."""
        whole = all(isinstance(edge, int) for edge in self.edges)
        labels = [f"below {self.edges[0]:g}"]
        labels += [_label(low, high, whole) for low, high in zip(self.edges, self.edges[1:], strict=False)]
        return list(zip([*labels, f"from {self.edges[-1]:g}"], self.counts, strict=True))


def _label(low: float, high: float, whole: bool) -> str:
    """Of the bin from `low` to below `high`; the last whole number in it where values are whole."""
    last = high - 1 if whole else high
    return f"{low:g}" if low == last else f"{low:g} to {last:g}"


@dataclass(frozen=True, slots=True)
class Records:
    """What the records of `looked_at` samples say; counts are of samples, but for tags, labels and languages."""

    looked_at: int
    damaged: int
    with_regions: int
    with_relations: int
    with_tags: int
    regions: int
    tags: dict[str, int]
    labels: dict[str, int]
    metadata: dict[str, int]
    languages: dict[str, int]


@dataclass(frozen=True, slots=True)
class Stats:
    """The numbers of one shard set; bytes are those of the tars."""

    folder: str
    digest: str
    source: str
    shards: int
    samples: int
    bytes: int
    captions: int
    captions_per_image: dict[int, int]
    extensions: dict[str, int]
    with_arrays: dict[str, int]
    image_bytes: int
    short_side: Histogram
    aspect: Histogram
    caption_words: Histogram
    records: Records
    filtered: FilterReport | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "filtered": self.filtered and self.filtered.model_dump()}


def stats(folder: Path, look: int = 1000) -> Stats:
    """Reads all indices, and the records of `look` samples spread evenly over the set.

    Raises:
        UserError: the folder holds no finished build.
    """
    shards = ShardSet(folder)
    tally = _Tally()
    for entry in shards.manifest.shards:
        tally.add(read_index(Path(folder) / entry.index_name))
    return Stats(
        folder=str(folder),
        digest=shards.digest,
        source=shards.manifest.plan.source,
        shards=len(shards.manifest.shards),
        samples=len(shards),
        bytes=shards.manifest.bytes,
        captions=sum(count * number for count, number in tally.captions.items()),
        captions_per_image=dict(sorted(tally.captions.items())),
        extensions=dict(tally.extensions.most_common()),
        with_arrays=dict(tally.arrays),
        image_bytes=tally.image_bytes,
        short_side=histogram(tally.short_side, SIDES),
        aspect=histogram(tally.aspect, ASPECTS),
        caption_words=histogram(tally.words, WORDS),
        records=_records(read_samples(shards, spread(len(shards), look))),
        filtered=shards.manifest.filtered,
    )


@dataclass(slots=True)
class _Tally:
    """How often each value occurs; memory grows with the number of different values."""

    captions: Counter[int] = field(default_factory=Counter)
    extensions: Counter[str] = field(default_factory=Counter)
    arrays: Counter[str] = field(default_factory=Counter)
    short_side: Counter[float] = field(default_factory=Counter)
    aspect: Counter[float] = field(default_factory=Counter)
    words: Counter[float] = field(default_factory=Counter)
    image_bytes: int = 0

    def add(self, index: pa.Table) -> None:
        if not index.num_rows:
            return
        width, height = index["width"].to_numpy(), index["height"].to_numpy()
        short, long = np.minimum(width, height), np.maximum(width, height)
        _count(self.short_side, short)
        _count(self.aspect, np.round(long / np.maximum(short, 1), 2))
        _count(self.captions, pc.list_value_length(index["caption_words"]).to_numpy())
        _count(self.words, pc.list_flatten(index["caption_words"]).to_numpy())
        self.extensions.update(index["extension"].to_pylist())
        self.image_bytes += pc.sum(index["image_size"]).as_py() or 0
        for name in ARRAYS:
            if f"{name}_offset" in index.column_names:
                self.arrays[name] += index.num_rows - index[f"{name}_offset"].null_count


def _count(counter: Counter[Any], values: np.ndarray) -> None:
    found, counts = np.unique(values, return_counts=True)
    counter.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def histogram(counts: Counter[float], edges: Sequence[float]) -> Histogram:
    """Exact, from how often each value occurs. The median of an even number of values is the lower one."""
    values = np.array(sorted(counts), dtype=np.float64)
    numbers = np.array([counts[value] for value in values.tolist()], dtype=np.int64)
    bins = np.bincount(np.searchsorted(edges, values, side="right"), weights=numbers, minlength=len(edges) + 1)
    if not len(values):
        return Histogram(tuple(edges), (0,) * (len(edges) + 1), 0, 0, 0)
    middle = np.searchsorted(np.cumsum(numbers), (numbers.sum() + 1) // 2)
    return Histogram(
        tuple(edges), tuple(int(n) for n in bins), float(values[middle]), float(values[0]), float(values[-1])
    )


def spread(samples: int, count: int) -> list[int]:
    """`count` indices spread evenly over a set, all of them where it has fewer."""
    return [i * samples // count for i in range(count)] if samples > count else list(range(samples))


def read_samples(shards: ShardSet, indices: Iterable[int]) -> list[Sample | DamagedSample]:
    """Samples, or what is wrong with them."""
    found: list[Sample | DamagedSample] = []
    for index in indices:
        try:
            found.append(shards[index])
        except DamagedSample as error:
            found.append(error)
    return found


def _records(found: list[Sample | DamagedSample]) -> Records:
    samples = [sample for sample in found if isinstance(sample, Sample)]
    tags = Counter(tag for sample in samples for tag in sample.tags)
    labels = Counter(region.label for sample in samples for region in sample.regions)
    metadata = Counter(name for sample in samples for name in sample.metadata)
    languages = Counter(language_of(c) for s in samples for c in s.captions) if find_spec("py3langid") else Counter()
    return Records(
        looked_at=len(found),
        damaged=len(found) - len(samples),
        with_regions=sum(bool(sample.regions) for sample in samples),
        with_relations=sum(bool(sample.relations) for sample in samples),
        with_tags=sum(bool(sample.tags) for sample in samples),
        regions=sum(len(sample.regions) for sample in samples),
        tags=dict(tags.most_common(20)),
        labels=dict(labels.most_common(20)),
        metadata=dict(metadata.most_common()),
        languages=dict(languages.most_common(10)),
    )


def lines(found: Stats) -> list[str]:
    """For people on a terminal."""
    per_image = found.captions / max(found.samples, 1)
    records = found.records
    text = [
        f"{found.folder}: {found.source}, {found.shards} shards, {found.samples} samples, {found.bytes:,} bytes",
        f"images: {_listed(found.extensions)}; {found.image_bytes // max(found.samples, 1):,} bytes on average",
        f"captions: {found.captions}, {per_image:.2f} per image ({_listed(found.captions_per_image)} images)",
    ]
    named = (("short side", found.short_side), ("aspect", found.aspect), ("caption words", found.caption_words))
    for name, bins in named:
        text.append(f"{name}: {bins.smallest:g} to {bins.largest:g}, median {bins.median:g}")
        text += _bars(bins)
    text.append(
        f"of {records.looked_at} samples looked into: {records.with_regions} with regions ({records.regions}), "
    )
    text[-1] += f"{records.with_relations} with relations, {records.with_tags} with tags, {records.damaged} damaged"
    text += [f"{name} of samples: {count}" for name, count in found.with_arrays.items() if count]
    text += [f"languages: {_listed(records.languages)}"] if records.languages else []
    return text + (found.filtered.lines() if found.filtered else [])


def _listed(counts: dict[Any, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _bars(bins: Histogram, width: int = 40) -> list[str]:
    most = max(bins.counts) or 1
    return [f"  {label:>14} {count:>9} {'#' * -(-width * count // most)}" for label, count in bins.bins() if count]
