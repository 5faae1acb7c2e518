"""`finetune search`: texts, pictures or both against an index, in two stages, many queries at a time.

A query of a text and a picture is the sum of their embeddings. Re-ranking orders the first stage's best by the matching
head's log-odds of text and picture, so it needs a text.

Shapes: Q queries, E embedding, k results.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from finetune.measure import choose_device
from finetune.search.encoder import Encoder, embeddings
from finetune.search.index import Index
from finetune.search.nearest import Embeddings, ranked
from pretrain.checkpoint import load_checkpoint
from pretrain.models.interface import Encoded
from shards.errors import UserError
from shards.sample import Sample

REMEMBERED = 1024  # encoded pictures kept for re-ranking
TOGETHER = 64  # pictures that go through the model at once


@dataclass(frozen=True)
class Query:
    """What is looked for: a text, a picture, or both; the best `k`, of `rerank` looked at again (0: none)."""

    text: str = ""
    picture: Sample | None = None
    k: int = 10
    rerank: int = 0


@dataclass(frozen=True)
class Hit:
    """A picture that was found. `score` is the cosine, `match` the log-odds where it was re-ranked."""

    row: int
    key: str
    caption: str
    score: float
    match: float | None = None


@dataclass(frozen=True)
class Answer:
    """The hits of one query, best first, and the milliseconds of each stage; queries answered together share them."""

    hits: list[Hit]
    milliseconds: dict[str, float]


class Searcher:
    """An index and its checkpoint. Not for several threads at once."""

    def __init__(self, index: Index, encoder: Encoder) -> None:
        self.index, self.encoder = index, encoder
        self._encoded: dict[int, Encoded] = {}

    @classmethod
    def open(cls, folder: Path, ckpt: str | None = None, device: str | None = None) -> "Searcher":
        """Opens an index with the checkpoint it was made with.

        Args:
            ckpt: Where the checkpoint lies now; None for where it lay.

        Raises:
            UserError: no index, no checkpoint, or a checkpoint with other weights.
        """
        index = Index(folder)
        made_with = index.facts.checkpoint
        checkpoint = load_checkpoint(ckpt or made_with.place)
        made_with.check(checkpoint, f"`index` (={folder})")
        return cls(index, Encoder(checkpoint, choose_device(device)))

    def check(self, query: Query) -> None:
        """Raises UserError for a query that cannot be answered."""
        if not query.text.strip() and query.picture is None:
            raise UserError("a query must have a text, a picture or both")
        if query.k < 1:
            raise UserError(f"`k` (={query.k}) must be at least 1")
        if query.rerank < 0 or 0 < query.rerank < query.k:
            raise UserError(f"`rerank` (={query.rerank}) must be 0 (off) or at least `k` (={query.k})")
        if query.rerank and not query.text.strip():
            raise UserError(f"`rerank` (={query.rerank}) matches a text with pictures, so the query must have a text")
        if query.rerank and not self.encoder.matches:
            raise UserError(f"`rerank` (={query.rerank}) needs a checkpoint with a matching head, `objectives.itm`")

    def search(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers queries together.

        Raises:
            UserError: as `check`; or re-ranking, where the pictures are gone or have changed.
            DamagedSample: a picture that cannot be decoded.
        """
        for query in queries:
            self.check(query)
        clock = _Clock()
        query_QE, texts = self._encode(queries)
        clock.lap("encode")
        hits = self._first_stage(queries, query_QE)
        clock.lap("search")
        if any(query.rerank for query in queries):
            hits = [
                self._rerank(found, texts.rows(slice(i, i + 1))) if query.rerank and texts else found
                for i, (query, found) in enumerate(zip(queries, hits, strict=True))
            ]
            clock.lap("rerank")
        return [Answer(found[: query.k], clock.laps) for query, found in zip(queries, hits, strict=True)]

    def warm_up(self) -> None:
        """Pays for the first pass through a model, so that the first query is as fast as the next."""
        self.search([Query("a", k=1)])

    def encoded(self, rows: Sequence[int]) -> Encoded:
        """The pictures of the index, encoded; kept, since the favourites of one query are those of the next."""
        missing = [row for row in rows if row not in self._encoded]
        fresh: dict[int, Encoded] = {}
        for start in range(0, len(missing), TOGETHER):
            part = missing[start : start + TOGETHER]
            images = self.encoder.images([self.index.picture(row) for row in part])
            fresh |= {row: images.rows(slice(i, i + 1)) for i, row in enumerate(part)}
        known = self._encoded | fresh
        kept = list(dict.fromkeys([*rows[::-1], *list(self._encoded)[::-1]]))[:REMEMBERED]  # the latest last
        self._encoded = {row: known[row] for row in reversed(kept)}
        return Encoded.concatenate([known[row] for row in rows])

    def _encode(self, queries: Sequence[Query]) -> tuple[Embeddings, Encoded | None]:
        """Unit vectors [Q, E], and the encoded texts row by row, None where no query has one."""
        texts = self.encoder.texts([query.text for query in queries]) if any(q.text.strip() for q in queries) else None
        pictures = [i for i, query in enumerate(queries) if query.picture is not None]
        query_QE = np.zeros((len(queries), self.index.facts.embedding_dim), np.float32)
        if texts is not None:
            has_text_Q = np.array([bool(query.text.strip()) for query in queries])
            query_QE += embeddings(texts) * has_text_Q[:, None]
        if pictures:
            samples = [sample for query in queries if (sample := query.picture) is not None]
            query_QE[pictures] += embeddings(self.encoder.images(samples))
        return query_QE / np.linalg.norm(query_QE, axis=1, keepdims=True), texts

    def _first_stage(self, queries: Sequence[Query], query_QE: Embeddings) -> list[list[Hit]]:
        counts = [max(query.k, query.rerank) for query in queries]
        most, effort = max(counts), self.index.facts.effort
        candidate_QC = self.index.nearest.candidates(query_QE, most, effort)
        found = ranked(candidate_QC, query_QE, self.index.embedding_IE, most)
        return [
            [self._hit(int(row), float(score)) for row, score in zip(rows[:count], scores[:count], strict=True)]
            for (rows, scores), count in zip(found, counts, strict=True)
        ]

    def _hit(self, row: int, score: float) -> Hit:
        return Hit(row, self.index.items.keys[row], self.index.items.captions[row], score)

    def _rerank(self, hits: list[Hit], text: Encoded) -> list[Hit]:
        if not hits:
            return hits
        images = self.encoded([hit.row for hit in hits])
        match = self.encoder.match(text.rows(torch.zeros(len(hits), dtype=torch.long)), images)
        order = np.argsort(-match, kind="stable")
        return [replace(hits[i], match=float(match[i])) for i in order]


class _Clock:
    """Milliseconds since the last lap, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(1000 * (now - self._last), 3)
        self._last = now
