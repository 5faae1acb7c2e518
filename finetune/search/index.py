"""An index on disk: a folder that appears whole, and knows which checkpoint and which pictures it was made of.

    index.json         the facts below
    embeddings.npy     float32 [I, E], L2-normalised
    items.parquet      key, place in the source, first caption; row i is image i
    thumbnails.bin     JPEGs one after the other;  thumbnails.npy  int64 [I + 1], where each begins
    faiss.index | head.safetensors + codes.npy    the first stage, where it is not exact

Re-ranking and heat maps read the pictures themselves, from where they lay; plain search needs the folder and the
checkpoint alone.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from safetensors import SafetensorError

from finetune.search.gallery import Form, Gallery, open_gallery
from finetune.search.nearest import Embeddings, Kind, Nearest, load
from finetune.search.origin import MadeWith
from finetune.search.tune import Agreement
from pretrain.settings import Section
from shards.errors import UserError
from shards.sample import Sample

FORMAT: Final = "duostream.index/1"
FACTS, EMBEDDINGS, ITEMS = "index.json", "embeddings.npy", "items.parquet"
THUMBNAILS, STARTS = "thumbnails.bin", "thumbnails.npy"
COLUMNS = pa.schema([("key", pa.string()), ("place", pa.int64()), ("caption", pa.string())])


class MadeOf(Section):
    """The pictures: where they lay, their fingerprint, and how many could not be read and are left out."""

    form: Form
    path: str
    fingerprint: str
    left_out: int


class IndexFacts(Section):
    """The whole of index.json.

    Attributes:
        head: The sha256 of the trained head of binary codes, None without one.
        agreement: None where there were too few captions to measure with.
    """

    format: Literal["duostream.index/1"] = FORMAT
    kind: Kind
    images: int
    embedding_dim: int
    bits: int | None
    head: str | None
    effort: int
    agreement: Agreement | None
    checkpoint: MadeWith
    source: MadeOf


@dataclass(frozen=True)
class Items:
    """Who the images are, in the order of the rows."""

    keys: list[str]
    places: list[int]
    captions: list[str]


class Index:
    """An index opened for reading.

    Raises:
        UserError: no index there, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = read_facts(folder)
        try:
            self.embedding_IE: Embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r")
            table = pq.read_table(folder / ITEMS, schema=COLUMNS)
            self.items = Items(*(table[name].to_pylist() for name in COLUMNS.names))
            self._starts = np.load(folder / STARTS)
            self.nearest: Nearest = load(self.facts.kind, folder, self.embedding_IE)
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"`index` (={folder}) is damaged: {reason}") from None
        rows = {len(self.embedding_IE), len(self.items.keys), len(self._starts) - 1, self.facts.images}
        if len(rows) > 1:
            raise UserError(f"`index` (={folder}) is damaged: its files differ in their number of rows")

    def thumbnail(self, row: int) -> bytes:
        """A JPEG."""
        start, stop = int(self._starts[row]), int(self._starts[row + 1])
        with (self.folder / THUMBNAILS).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def picture(self, row: int) -> Sample:
        """The picture as it lay in the source.

        Raises:
            UserError: the source is gone or has changed.
            DamagedSample: it cannot be read.
        """
        return self._gallery.source[self.items.places[row]]

    @cached_property
    def _gallery(self) -> Gallery:
        made_of = self.facts.source
        place = Path(made_of.path)
        try:
            gallery = open_gallery(*((place, None) if made_of.form == "shards" else (None, place)))
        except UserError as error:
            raise UserError(f"the pictures of `index` (={self.folder}) cannot be opened: {error}") from None
        if gallery.source.fingerprint() != made_of.fingerprint:
            raise UserError(f"the pictures of `index` (={self.folder}) have changed in {place}; make the index again")
        return gallery


def read_facts(folder: Path) -> IndexFacts:
    """Raises UserError where `folder` holds no index, or a damaged one."""
    file = folder / FACTS
    if not file.is_file():
        raise UserError(f"`index` (={folder}) must be a folder that `finetune index` wrote")
    try:
        return IndexFacts.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or FACTS
        raise UserError(f"`index` (={folder}) is damaged: {where}: {first['msg'].lower()}") from None


def write_index(folder: Path, facts: IndexFacts, embedding_IE: Embeddings, items: Items, nearest: Nearest) -> None:
    """Writes all but the thumbnails, which are written while the pictures are read."""
    np.save(folder / EMBEDDINGS, embedding_IE)
    columns = [items.keys, items.places, items.captions]
    pq.write_table(pa.table(columns, schema=COLUMNS), folder / ITEMS)
    nearest.save(folder)
    (folder / FACTS).write_text(facts.model_dump_json(indent=1))
