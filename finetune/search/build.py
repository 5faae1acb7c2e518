"""`finetune index`: pictures through the image encoder, once, into a folder that appears whole.

Shapes: I images, E embedding, T texts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from finetune.measure import choose_device
from finetune.pictures import thumbnail
from finetune.search.encoder import Encoder, embeddings, text_embeddings
from finetune.search.gallery import Gallery, open_gallery
from finetune.search.head import check_bits, open_head
from finetune.search.index import FACTS, STARTS, THUMBNAILS, IndexFacts, Items, MadeOf, write_index
from finetune.search.nearest import Embeddings, Kind, build, load_faiss
from finetune.search.origin import MadeWith
from finetune.search.tune import MOST_QUERIES, tune
from pretrain.checkpoint import load_checkpoint
from shards.console import Progress, progress
from shards.errors import DamagedSample, UserError
from shards.sample import Sample
from shards.storage import replace_folder_atomically

BATCH = 64
THUMBNAIL = 256  # pixels of the longer side
SAID = 5  # damaged pictures that are named


@dataclass(frozen=True)
class Request:
    """What was typed.

    Attributes:
        codes: The folder of a trained head.
        recall: The share of exact search's first ten that tuning aims at.
    """

    ckpt: str
    shards: Path | None
    images: Path | None
    kind: Kind = "exact"
    bits: int | None = None
    codes: Path | None = None
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
    _check_codes(request)
    if request.kind in ("hnsw", "ivfpq"):
        load_faiss()
    gallery = open_gallery(request.shards, request.images)
    encoder = Encoder(load_checkpoint(request.ckpt), choose_device(request.device))
    trained = open_head(request.codes, encoder.checkpoint) if request.codes else None
    bits = trained.facts.bits if trained else _bits(request, encoder.embedding_dim)
    with replace_folder_atomically(out, overwrite, mark=FACTS) as folder:
        with (folder / THUMBNAILS).open("wb") as file:
            pictures = _read(gallery, encoder, file)
        embedding_IE = np.concatenate(pictures.embeddings)
        nearest = build(request.kind, embedding_IE, bits or 0, trained.head if trained else None)
        effort, agreement = tune(nearest, _queries(pictures, encoder), embedding_IE, request.recall)
        facts = IndexFacts(
            kind=request.kind,
            images=len(embedding_IE),
            embedding_dim=embedding_IE.shape[1],
            bits=bits,
            head=trained.facts.digest if trained else None,
            effort=effort,
            agreement=agreement,
            checkpoint=MadeWith.of(encoder.checkpoint, request.ckpt),
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


def _check_codes(request: Request) -> None:
    """Raises UserError for options that do not go together."""
    for name, value in (("--bits", request.bits), ("--codes", request.codes)):
        if value is not None and request.kind != "binary":
            raise UserError(f"`{name}` (={value}) is for `--kind binary`; this is {request.kind}")
    if request.bits is not None and request.codes is not None:
        raise UserError(f"`--bits` (={request.bits}) is decided by the head of `--codes` (={request.codes})")
    if request.bits is not None:
        check_bits(request.bits)


def _bits(request: Request, embedding_dim: int) -> int | None:
    """Of a code without a trained head; twice the embedding's size unless given."""
    if request.kind != "binary":
        return None
    return request.bits or 64 * -(-2 * embedding_dim // 64)


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
    return text_embeddings(encoder, [distinct[i] for i in even])
