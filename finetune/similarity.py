"""How well each image of a shard set goes with its texts, by a checkpoint: what `shards filter --scores` reads.

Shapes: N samples, B of a batch, T texts of the batch.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.measure import choose_device
from finetune.search.encoder import Encoder, embeddings
from finetune.sound import sound_parts
from pretrain.checkpoint import load_checkpoint
from shards.reader import ShardSet
from shards.sample import Sample
from shards.storage import write_atomically

BATCH = 64


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
    parts = list(
        sound_parts(
            f"score {shards.name}", shards, range(len(shards)), BATCH, lambda samples: best_similarity(encoder, samples)
        )
    )
    indices = [index for part in parts for index in part.indices]
    similarity_N = np.concatenate([part.made for part in parts])
    return Scored(np.array(indices, np.int64), similarity_N, len(shards) - len(indices))


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
