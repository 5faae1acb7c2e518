"""How well each image of a shard set goes with its texts, by a checkpoint: what `shards filter --scores` reads.

Shapes: N samples, B of a batch, T texts of the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.measure import choose_device
from finetune.search.encoder import Encoder, embeddings
from pretrain.checkpoint import load_checkpoint
from shards.console import Progress, progress
from shards.errors import DamagedSample
from shards.reader import ShardSet
from shards.sample import Sample
from shards.storage import write_atomically

BATCH = 64
SAID = 5  # damaged samples that are named


@dataclass(frozen=True)
class Scored:
    """What one pass over a shard set found.

    Attributes:
        indices_N: int64 [N], ascending: the samples that could be read.
        similarity_N: float32 [N], the largest cosine of the image and one of its texts.
        left_out: Damaged samples, which have no score.
    """

    indices_N: np.ndarray
    similarity_N: np.ndarray
    left_out: int


def score_shards(ckpt: str, shards: ShardSet, device: str | None = None) -> Scored:
    """Encodes every image and text once.

    Raises:
        UserError: no such checkpoint, or one whose sides have no shared space.
        DamagedSample: no sample at all could be read.
    """
    encoder = Encoder(load_checkpoint(ckpt), choose_device(device))
    indices: list[int] = []
    parts: list[np.ndarray] = []
    with progress(f"score {shards.name}", len(shards)) as bar:
        tell = _few(bar)
        for start in range(0, len(shards), BATCH):
            batch = range(start, min(start + BATCH, len(shards)))
            for sound in _sound(encoder, shards, batch, tell):
                indices.extend(sound.indices)
                parts.append(sound.similarity_B)
            bar.advance(len(batch))
    if not indices:
        raise DamagedSample(f"none of the {len(shards)} samples of {shards.name} could be read")
    return Scored(np.array(indices, np.int64), np.concatenate(parts), len(shards) - len(indices))


def best_similarity(encoder: Encoder, samples: list[Sample]) -> np.ndarray:
    """The largest cosine of each image and one of its own texts, float32 [B]."""
    texts = [text for sample in samples for text in sample.captions]
    starts_B = np.cumsum([0, *(len(sample.captions) for sample in samples[:-1])])
    image_BE, text_TE = embeddings(encoder.images(samples)), embeddings(encoder.texts(texts))
    own_T = np.repeat(np.arange(len(samples)), [len(sample.captions) for sample in samples])
    cosine_T = (image_BE[own_T] * text_TE).sum(1)
    return np.maximum.reduceat(cosine_T, starts_B)


def write_scores(shards: ShardSet, scored: Scored, out: Path) -> None:
    """Parquet with `shard`, `ordinal` and `similarity` (see `shards.scores`); appears whole or not at all."""
    identities = [shards.identity(int(index)) for index in scored.indices_N]
    table = pa.table(
        {
            "shard": pa.array([shard for shard, _ in identities], pa.string()),
            "ordinal": pa.array([ordinal for _, ordinal in identities], pa.int64()),
            "similarity": pa.array(scored.similarity_N, pa.float32()),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(out, sink.getvalue().to_pybytes())


class _Part(NamedTuple):
    indices: list[int]
    similarity_B: np.ndarray


def _sound(encoder: Encoder, shards: ShardSet, batch: Sequence[int], tell: Callable[[str], None]) -> Iterator[_Part]:
    """The batch in one piece; if a sample of it is damaged, one by one without it."""
    try:
        yield _Part(list(batch), best_similarity(encoder, [shards[index] for index in batch]))
    except DamagedSample as error:
        if len(batch) == 1:
            tell(f"left out: sample {batch[0]}: {error}")
            return
        for index in batch:
            yield from _sound(encoder, shards, [index], tell)


def _few(bar: Progress) -> Callable[[str], None]:
    """Says the first lines and keeps the rest to itself."""
    left = iter(range(SAID))
    return lambda line: bar.say(line) if next(left, None) is not None else None
