"""`finetune index`: pictures through the image encoder, once, into a folder that appears whole.

Shapes: I images, E embedding, T texts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from finetune.facts import run_name
from finetune.measure import choose_device
from finetune.pictures import thumbnail
from finetune.search.encoder import Encoder, embeddings
from finetune.search.gallery import Gallery, open_gallery
from finetune.search.index import FACTS, STARTS, THUMBNAILS, IndexFacts, Items, MadeOf, MadeWith, write_index
from finetune.search.nearest import Embeddings, Kind, build, load_faiss
from finetune.search.tune import MOST_QUERIES, tune
from pretrain.checkpoint import EMA, load_checkpoint
from pretrain.hub import hub_place
from shards.console import Progress, progress
from shards.errors import DamagedSample, UserError
from shards.sample import Sample
from shards.storage import replace_folder_atomically

BATCH, TEXT_BATCH = 64, 256
THUMBNAIL = 256  # pixels of the longer side
SAID = 5  # damaged pictures that are named


@dataclass(frozen=True)
class Request:
    """What was typed. `recall` is the share of exact search's first ten that tuning aims at."""

    ckpt: str
    shards: Path | None
    images: Path | None
    kind: Kind = "exact"
    bits: int | None = None
    recall: float = 0.95
    device: str | None = None


@dataclass
class Pictures:
    """What one pass over the pictures yields; `left_out` counts those that could not be decoded."""

    keys: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    embeddings: list[Embeddings] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    left_out: int = 0


def build_index(request: Request, out: Path, overwrite: bool = False) -> IndexFacts:
    """Makes the index at `out`.

    Raises:
        UserError: before anything is encoded or written; or a full disk, which leaves nothing behind.
        DamagedSample: no picture at all could be read.
    """
    if request.kind in ("hnsw", "ivfpq"):
        load_faiss()
    gallery = open_gallery(request.shards, request.images)
    encoder = Encoder(load_checkpoint(request.ckpt), choose_device(request.device))
    bits = _bits(request, encoder.embedding_dim)
    with replace_folder_atomically(out, overwrite, mark=FACTS) as folder:
        with (folder / THUMBNAILS).open("wb") as file:
            pictures = _read(gallery, encoder, file)
        embedding_IE = np.concatenate(pictures.embeddings)
        nearest = build(request.kind, embedding_IE, bits or 0)
        effort, agreement = tune(nearest, _queries(pictures, encoder), embedding_IE, request.recall)
        facts = IndexFacts(
            kind=request.kind,
            images=len(embedding_IE),
            embedding_dim=embedding_IE.shape[1],
            bits=bits,
            effort=effort,
            agreement=agreement,
            checkpoint=_made_with(encoder, request.ckpt),
            source=MadeOf(
                form=gallery.form,
                path=str(gallery.path),
                fingerprint=gallery.source.fingerprint(),
                left_out=pictures.left_out,
            ),
        )
        first = [texts[0] if texts else "" for texts in pictures.captions]
        write_index(folder, facts, embedding_IE, Items(pictures.keys, pictures.places, first), nearest)
        np.save(folder / STARTS, np.array(pictures.starts, np.int64))
    return facts


def _bits(request: Request, embedding_dim: int) -> int | None:
    """Of a code; twice the embedding's size unless given."""
    if request.kind != "binary":
        if request.bits is not None:
            raise UserError(f"`--bits` (={request.bits}) is for `--kind binary`; this is {request.kind}")
        return None
    bits = request.bits or 64 * -(-2 * embedding_dim // 64)
    if bits % 64:
        raise UserError(f"`--bits` (={bits}) must be a multiple of 64")
    return bits


def _read(gallery: Gallery, encoder: Encoder, thumbnails: BinaryIO) -> Pictures:
    pictures = Pictures()
    with progress("encode pictures", len(gallery.source)) as bar:
        batch: list[tuple[int, Sample]] = []
        for place, sample, small in _decodable(gallery, pictures, bar):
            pictures.starts.append(pictures.starts[-1] + thumbnails.write(small))
            batch.append((place, sample))
            if len(batch) == BATCH:
                _encode(pictures, encoder, batch)
                batch = []
        if batch:
            _encode(pictures, encoder, batch)
    if not pictures.keys:
        raise DamagedSample(f"none of the {len(gallery.source)} pictures in {gallery.path} could be read")
    return pictures


def _decodable(gallery: Gallery, pictures: Pictures, bar: Progress) -> Iterator[tuple[int, Sample, bytes]]:
    """Samples with their thumbnails; damaged pictures are named, counted and left out."""
    for place in range(len(gallery.source)):
        try:
            sample = gallery.source[place]
            small = thumbnail(sample, THUMBNAIL)
        except DamagedSample as error:
            pictures.left_out += 1
            if pictures.left_out <= SAID:
                bar.say(f"left out: picture {place}: {error}")
        else:
            yield place, sample, small
        bar.advance()


def _encode(pictures: Pictures, encoder: Encoder, batch: list[tuple[int, Sample]]) -> None:
    pictures.embeddings.append(embeddings(encoder.images([sample for _, sample in batch])))
    pictures.places.extend(place for place, _ in batch)
    pictures.keys.extend(sample.key for _, sample in batch)
    pictures.captions.extend(sample.captions for _, sample in batch)


def _queries(pictures: Pictures, encoder: Encoder) -> Embeddings:
    """Distinct captions spread over the gallery, encoded; float32 [T, E]."""
    distinct = list(dict.fromkeys(text for texts in pictures.captions for text in texts if text.strip()))
    even = np.linspace(0, len(distinct) - 1, min(len(distinct), MOST_QUERIES)).round().astype(int)
    chosen = [distinct[i] for i in even]
    parts = [
        embeddings(encoder.texts(chosen[start : start + TEXT_BATCH])) for start in range(0, len(chosen), TEXT_BATCH)
    ]
    return np.concatenate(parts) if parts else np.empty((0, pictures.embeddings[0].shape[1]), np.float32)


def _made_with(encoder: Encoder, place: str) -> MadeWith:
    """The place is the checkpoint itself: a run folder's latest changes, and so does a hub's branch."""
    checkpoint = encoder.checkpoint
    path, hub = checkpoint.path, hub_place(place)
    lasting = hub.pinned(path.name) if hub else str(path.resolve() / (EMA if checkpoint.weights == EMA else ""))
    return MadeWith(place=lasting, digest=checkpoint.digest, name=run_name(checkpoint), step=checkpoint.step)
