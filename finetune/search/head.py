"""`finetune hash`: a trained head in a folder that appears whole, and knows whose embeddings it hashes.

head.json           the facts below
head.safetensors    the weights, `codes.HashHead`
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError

from finetune.measure import choose_device
from finetune.search.codes import HashHead, encode, gaussian, rotation
from finetune.search.encoder import Encoder, embeddings, text_embeddings
from finetune.search.learn import Pairs, learn_head
from finetune.search.nearest import Binary, Embeddings
from finetune.search.origin import MadeWith
from finetune.search.tune import FEWEST_QUERIES, share_found, tenth_scores
from finetune.sound import sound_parts
from pretrain.checkpoint import Checkpoint, load_checkpoint, sha256
from pretrain.settings import Section
from shards.errors import UserError
from shards.sample import Sample
from shards.sources.base import Source
from shards.storage import replace_folder_atomically

FORMAT: Final = "duostream.hash/1"
FACTS, WEIGHTS = "head.json", "head.safetensors"
BATCH = 64
HELD_OUT, MOST_HELD_OUT = 0.1, 1000  # share and number of the captions that measure


class Comparison(Section):
    """Recall at 10 of codes alone against exact search, on captions that trained nothing, at equal bits.

    Attributes:
        captions: How many.
        trained: Of the head.
        rotation: Of plain signs after the rotation that `finetune index` takes without a head.
        gaussian: Of signs of random projections.
    """

    captions: int
    trained: float
    rotation: float
    gaussian: float


class HeadFacts(Section):
    """The whole of head.json. `comparison` is None where there were fewer than 20 captions to hold out."""

    format: Literal["duostream.hash/1"] = FORMAT
    bits: int
    embedding_dim: int
    images: int
    captions: int
    steps: int
    comparison: Comparison | None
    checkpoint: MadeWith
    fingerprint: str
    digest: str


@dataclass(frozen=True)
class Trained:
    """A head opened for use."""

    head: HashHead
    facts: HeadFacts


@dataclass(frozen=True)
class Request:
    """What was typed. `most` images of the source are learned from, spread evenly."""

    ckpt: str
    source: Source
    bits: int
    steps: int
    most: int
    device: str | None = None


def build_head(request: Request, out: Path, overwrite: bool = False) -> HeadFacts:
    """Trains a head and writes it to `out`.

    Raises:
        UserError: before anything is encoded or written; or no captions to learn from.
        DamagedSample: no picture at all could be read.
    """
    check_bits(request.bits)
    encoder = Encoder(load_checkpoint(request.ckpt), choose_device(request.device))
    with replace_folder_atomically(out, overwrite, mark=FACTS) as folder:
        pairs = encode_pairs(encoder, request.source, request.most)
        training, held_out_QE = hold_out(pairs)
        head = learn_head(training, request.bits, request.steps)
        head.save(folder / WEIGHTS)
        facts = HeadFacts(
            bits=request.bits,
            embedding_dim=encoder.embedding_dim,
            images=len(pairs.image_IE),
            captions=len(training.text_P),
            steps=request.steps,
            comparison=compare(head, training.image_IE, held_out_QE),
            checkpoint=MadeWith.of(encoder.checkpoint, request.ckpt),
            fingerprint=request.source.fingerprint(),
            digest=sha256(folder / WEIGHTS),
        )
        (folder / FACTS).write_text(facts.model_dump_json(indent=1))
    return facts


def check_bits(bits: int) -> None:
    """Raises UserError for a length that words of 64 bits do not hold."""
    if bits % 64 or bits < 64:
        raise UserError(f"`--bits` (={bits}) must be a multiple of 64")


def encode_pairs(encoder: Encoder, source: Source, most: int) -> Pairs:
    """Images spread over the source with all their captions; each distinct text is encoded once.

    Raises:
        UserError: no captions.
        DamagedSample: no picture at all could be read; some that could not are named and left out.
    """
    places = np.linspace(0, len(source) - 1, min(len(source), most)).round().astype(int).tolist()

    def encode_images(samples: list[Sample]) -> tuple[Embeddings, list[tuple[str, ...]]]:
        return embeddings(encoder.images(samples)), [sample.captions for sample in samples]

    parts = list(sound_parts("encode pictures", source, places, BATCH, encode_images))
    captions = [texts for part in parts for texts in part.made[1]]
    place = {text: row for row, text in enumerate(dict.fromkeys(t for texts in captions for t in texts if t.strip()))}
    if not place:
        raise UserError(f"the source `{source.name}` has no captions, and a hash head learns from pairs")
    owned = [(image, place[text]) for image, texts in enumerate(captions) for text in texts if text in place]
    image_P, text_P = np.array(owned, np.int64).T
    return Pairs(
        np.concatenate([part.made[0] for part in parts]), text_embeddings(encoder, list(place)), image_P, text_P
    )


def hold_out(pairs: Pairs) -> tuple[Pairs, Embeddings]:
    """A tenth of the distinct captions is kept from training, 1,000 at most: the other pairs, and those captions.

    None where a tenth is fewer than it takes to measure.
    """
    texts = len(pairs.text_TE)
    count = min(int(HELD_OUT * texts), MOST_HELD_OUT)
    if count < FEWEST_QUERIES:
        return pairs, pairs.text_TE[:0]
    kept_T = np.ones(texts, bool)
    kept_T[np.linspace(0, texts - 1, count).round().astype(int)] = False
    kept_P = kept_T[pairs.text_P]
    training = Pairs(pairs.image_IE, pairs.text_TE, pairs.image_P[kept_P], pairs.text_P[kept_P])
    return training, pairs.text_TE[~kept_T]


def compare(head: HashHead, image_IE: Embeddings, query_QE: Embeddings) -> Comparison | None:
    """The head and what needs no training, by ten nearest codes of each query."""
    if not len(query_QE):
        return None
    threshold_Q = tenth_scores(query_QE, image_IE)

    def found(other: HashHead) -> float:
        nearest = Binary(other, encode(image_IE, other))
        return share_found(nearest, query_QE, image_IE, threshold_Q, effort=0, refine=False)

    return Comparison(
        captions=len(query_QE),
        trained=found(head),
        rotation=found(rotation(image_IE, head.bits)),
        gaussian=found(gaussian(head.embedding_dim, head.bits)),
    )


def open_head(folder: Path, checkpoint: Checkpoint) -> Trained:
    """What `build_head` wrote.

    Raises:
        UserError: no head there, a damaged one, or one for other weights than `checkpoint`'s.
    """
    what = f"`codes` (={folder})"
    if not (folder / FACTS).is_file():
        raise UserError(f"{what} must be a folder that `finetune hash` wrote")
    try:
        facts = HeadFacts.model_validate_json((folder / FACTS).read_bytes())
        facts.checkpoint.check(checkpoint, what)
        if sha256(folder / WEIGHTS) != facts.digest:
            raise UserError(f"{what} is damaged: {WEIGHTS} does not have the sha256 that {FACTS} names")
        return Trained(HashHead.load(folder / WEIGHTS), facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or FACTS
        raise UserError(f"{what} is damaged: {where}: {first['msg'].lower()}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{what} is damaged: {' '.join(str(error).split())}") from None
