"""Which samples of a source the filters keep: a pass over the source before anything is written.

    source -> chunks -> judge each sample (in any process) -> verdicts in order -> duplicates -> Selection

The images are read twice, here and by the writer. For that shards come out full whatever is rejected, duplicates are
found across the whole corpus, in the order of the source, and the result does not depend on who judged what.
"""

import hashlib
import io
import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.console import Progress
from shards.duplicates import near_repeated, repeated
from shards.errors import DamagedSample, SourceGone, UserError
from shards.executors import Executor
from shards.filters import Filters, Verdict, caption_fault, judge, with_captions
from shards.manifest import FilterReport
from shards.sample import Identity, Sample
from shards.soundness import UNSOUND
from shards.sources.base import Source
from shards.storage import write_atomically

CHUNK = 1024
"""Samples judged in one go; a scan that was killed loses at most the chunks at work."""

REASONS = (
    *UNSOUND,
    *("max_nsfw", "max_watermark", "min_similarity", "min_words", "min_characters", "max_characters", "languages"),
    *("min_short_side", "max_aspect", "decodable", "exact_duplicates", "perceptual_distance"),
)
"""A rejection is stored as a place in this tuple, counted from 1; 0 is kept."""
_COUNTS = 1 + 2 * len(REASONS)


@dataclass(frozen=True, slots=True)
class Selection:
    """Indices of the kept samples, int64, ascending, with the reason of each rejection and the counts."""

    kept: np.ndarray
    reasons: np.ndarray
    report: FilterReport

    @property
    def rejected(self) -> dict[int, str]:
        """Index in the source -> reason."""
        return {int(index): REASONS[self.reasons[index] - 1] for index in np.flatnonzero(self.reasons)}


def rejections(rejected: Mapping[int, str]) -> bytes:
    """The content of `rejected.parquet`: index int64 in the source, ascending, and reason."""
    indices = sorted(rejected)
    codes = pa.array([_code(rejected[index]) - 1 for index in indices], pa.uint8())
    sink = pa.BufferOutputStream()
    names = pa.DictionaryArray.from_arrays(codes, pa.array(REASONS))
    pq.write_table(pa.table({"index": pa.array(indices, pa.int64()), "reason": names}), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def in_order(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts that are not zero, by reason, in the order of `REASONS`."""
    return {name: int(counts[name]) for name in REASONS if counts.get(name)}


class FilteredSource:
    """The kept samples of a source, with the captions that the filters keep."""

    def __init__(self, source: Source, selection: Selection, filters: Filters) -> None:
        self.source, self.filters, self.kept = source, filters, selection.kept
        self.name = source.name

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[int(self.kept[index])]
        kept = (i for i, caption in enumerate(sample.captions) if not caption_fault(caption, self.filters))
        return with_captions(sample, tuple(kept))

    def identity(self, index: int) -> Identity:
        return self.source.identity(int(self.kept[index]))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.source.fingerprint().encode())
        digest.update(self.kept.tobytes())
        digest.update(self.filters.model_dump_json().encode())
        return digest.hexdigest()


def scan(
    source: Source,
    filters: Filters,
    executor: Executor | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Judges every sample.

    Args:
        store: A folder that keeps finished chunks, so that a scan which was killed goes on; of this source and these
            filters alone. `forget_scan` removes it.

    Raises:
        UserError: a filter whose number no sample has.
    """
    starts = range(0, len(source), CHUNK)
    chunks: dict[int, _Chunk] = {}
    for start, chunk in (executor or Executor()).run(_scan_chunk, (source, filters, store), ((s,) for s in starts)):
        chunks[start] = chunk
        if progress:
            progress.advance(len(chunk.reasons))
    return _selection([chunks.pop(start) for start in starts], filters)


def forget_scan(store: Path) -> None:
    shutil.rmtree(store, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Verdicts of consecutive samples: reasons uint8 [n], signatures uint64 [n, 2], which rows of `near` count [n].

    Signatures that no filter asks for are left out.
    """

    reasons: np.ndarray
    exact: np.ndarray
    near: np.ndarray
    has_near: np.ndarray
    counts: np.ndarray
    """int64 [1 + 2R]: captions read, captions dropped by reason, samples unscored by reason."""


def _scan_chunk(source: Source, filters: Filters, store: Path | None, start: int) -> tuple[int, _Chunk]:
    file = store / f"{start:012d}.npz" if store else None
    chunk = _stored(file) if file else None
    if chunk is None:
        chunk = _judged(source, filters, range(start, min(start + CHUNK, len(source))))
        if file:
            write_atomically(file, _packed(chunk))
    return start, chunk


def _judged(source: Source, filters: Filters, indices: range) -> _Chunk:
    counts: Counter[int] = Counter()
    verdicts = [_verdict(source, filters, index, counts) for index in indices]
    exact = [verdict.exact for verdict in verdicts] if filters.exact_duplicates else []
    near = [verdict.near for verdict in verdicts] if filters.perceptual_distance is not None else []
    return _Chunk(
        np.array([_code(verdict.reason) for verdict in verdicts], dtype=np.uint8),
        np.array([signature or (0, 0) for signature in exact], dtype=np.uint64),
        np.array([signature or (0, 0) for signature in near], dtype=np.uint64),
        np.array([signature is not None for signature in near], dtype=bool),
        np.array([counts[i] for i in range(_COUNTS)], dtype=np.int64),
    )


def _verdict(source: Source, filters: Filters, index: int, counts: Counter[int]) -> Verdict:
    try:
        sample = source[index]
    except SourceGone:
        raise
    except DamagedSample:
        return Verdict("unreadable")
    verdict = judge(sample, filters)
    counts[0] += len(sample.captions)
    for name, number in verdict.dropped.items():
        counts[_code(name)] += number
    for name in verdict.unscored:
        counts[len(REASONS) + _code(name)] += 1
    return verdict


def _code(reason: str) -> int:
    return REASONS.index(reason) + 1 if reason else 0


def _packed(chunk: _Chunk) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(chunk, name) for name in _Chunk.__slots__})
    return buffer.getvalue()


def _stored(file: Path) -> _Chunk | None:
    """A chunk that an earlier run finished; None where there is none, or it is damaged."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            chunk = _Chunk(**{name: arrays[name] for name in _Chunk.__slots__})
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return chunk if len(chunk.counts) == _COUNTS else None  # Another version may know other reasons.


def _selection(chunks: list[_Chunk], filters: Filters) -> Selection:
    """Puts the verdicts together, and looks for duplicates among the samples that nothing else rejects."""
    reasons = np.concatenate([chunk.reasons for chunk in chunks])
    if filters.exact_duplicates:
        places = np.flatnonzero(reasons == 0)
        signatures = np.concatenate([chunk.exact for chunk in chunks])
        reasons[places[repeated(signatures[places])]] = _code("exact_duplicates")
    if filters.perceptual_distance is not None:
        places = np.flatnonzero((reasons == 0) & np.concatenate([chunk.has_near for chunk in chunks]))
        signatures = np.concatenate([chunk.near for chunk in chunks])
        found = near_repeated(signatures[places], filters.perceptual_distance)
        reasons[places[found]] = _code("perceptual_distance")
    totals = np.sum([chunk.counts for chunk in chunks], axis=0)
    report = _report(reasons, totals)
    for name, count in report.unscored.items():
        if count >= report.read - report.rejected.get("unreadable", 0):
            field = getattr(filters, f"{name.split('_')[1]}_field")
            raise UserError(f"`{name}` needs the metadata field `{field}`, which no sample has as a number")
    return Selection(np.flatnonzero(reasons == 0), reasons, report)


def _report(reasons: np.ndarray, totals: np.ndarray) -> FilterReport:
    size = len(REASONS)
    rejected = np.bincount(reasons, minlength=size + 1)

    def named(counts: np.ndarray) -> dict[str, int]:
        return in_order(dict(zip(REASONS, counts.tolist(), strict=True)))

    return FilterReport(
        read=len(reasons),
        kept=int(rejected[0]),
        rejected=named(rejected[1:]),
        captions_read=int(totals[0]),
        captions_dropped=named(totals[1 : 1 + size]),
        unscored=named(totals[1 + size :]),
    )
