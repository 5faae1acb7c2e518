"""The results table: published rows beside measured ones, grouped by dataset. `table_formats.py` writes it.

Measured figures come from results files alone, and they are the pessimistic ones. Published figures are as printed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.published import FIGURES, Published, published_results
from finetune.results import Results

TITLES = {"coco_5k": "COCO 5K", "coco_1k": "COCO 1K", "flickr30k": "Flickr30K"}
LEGEND = (
    "Recall in percent at 1, 5 and 10: i2t finds the texts of an image, t2i the image of a text; RSUM is their sum."
)
MEASURED = "Bold rows are measured here, ties counted against the system."
DIFFERENCE = "Diff. is the measured RSUM minus the sum of the six figures published for that system."
PUBLISHED = (
    "Others are as published. CC Conceptual Captions, CC12M Conceptual 12M, VG Visual Genome, SBU the SBU captions, "
    "Books the BooksCorpus."
)


@dataclass(frozen=True)
class Provenance:
    """Where a measured row comes from."""

    checkpoint: str
    step: int
    data_digest: str
    protocol: str
    k: int
    date: str


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        figures: The six recalls and RSUM, None where there is none.
        difference: Of RSUM to the published row of the same system; None where there is none to compare with.
        provenance: None for published rows.
    """

    system: str
    stream: str
    data: str
    figures: tuple[float | None, ...]
    difference: float | None
    note: str
    provenance: Provenance | None

    @property
    def measured(self) -> bool:
        return self.provenance is not None


@dataclass(frozen=True)
class Group:
    """The rows of one dataset: published ones in the survey's order, each with what was measured for it below."""

    dataset: str
    rows: list[Row]

    @property
    def title(self) -> str:
        return TITLES.get(self.dataset, self.dataset)


def build_table(results: Sequence[Results], only_measured: bool = False) -> list[Group]:
    """Groups the rows by dataset: the datasets of `results`, or every published one where no result is given."""
    measured = {result.data.dataset for result in results}
    order = dict.fromkeys([*TITLES, *(result.data.dataset for result in results)])
    groups = [Group(name, _rows(name, results, only_measured)) for name in order if name in measured or not results]
    return [group for group in groups if group.rows]


def _rows(dataset: str, results: Sequence[Results], only_measured: bool) -> list[Row]:
    published = [row for row in published_results() if row.dataset == dataset]
    ours = [result for result in results if result.data.dataset == dataset]
    named = {row.system: row for row in published}
    rows: list[Row] = []
    for row in published:
        own = [result for result in ours if result.system == row.system]
        rows += [] if only_measured else [_published_row(row, bool(own))]
        rows += [_measured_row(result, row) for result in own]
    return rows + [_measured_row(result, None) for result in ours if result.system not in named]


def _published_row(row: Published, measured: bool) -> Row:
    parts = [row.source, row.note, "" if measured else "not measured here"]
    note = "; ".join(part for part in parts if part)
    return Row(row.system, row.stream, row.pretraining_data, row.figures, None, note, None)


def _measured_row(result: Results, published: Published | None) -> Row:
    expected = published.sum_of_recalls if published else None
    difference = None if expected is None else result.rsum.pessimistic - expected
    return Row(
        result.name,
        result.stream,
        result.pretraining_data,
        result.figures,
        difference,
        provenance_line(result),
        provenance(result),
    )


def provenance(result: Results) -> Provenance:
    """Where a measured row comes from, as columns."""
    return Provenance(
        result.checkpoint.digest,
        result.checkpoint.step,
        result.data.digest,
        protocol_line(result),
        result.protocol.rerank,
        result.date,
    )


def protocol_line(result: Results) -> str:
    """How a row was measured, in one line."""
    protocol = result.protocol
    alone = "every pair by itm" if protocol.score == "itm" else "no re-ranking"
    parts = [
        f"re-ranked k={protocol.rerank} by {protocol.score}" if protocol.rerank else alone,
        f"captions {protocol.captions}",
        f"ties {protocol.ties}",
        *([f"mean of {protocol.folds} folds"] if protocol.folds > 1 else []),
    ]
    return "; ".join(parts)


def provenance_line(result: Results) -> str:
    """Where a measured row comes from, in one line."""
    low, high = result.rsum.intervals.rsum
    parts = [
        f"checkpoint {result.checkpoint.digest[:12]} step {result.checkpoint.step}",
        f"data {result.data.digest[:12]} ({result.data.images} images, {result.data.texts} texts)",
        protocol_line(result),
        f"RSUM 95 % interval {low:.1f} to {high:.1f}",
        result.date[:10],
    ]
    return "; ".join(parts)


def legend(groups: Sequence[Group]) -> str:
    """Explains what the tables show, and no more."""
    rows = [row for group in groups for row in group.rows]
    parts = [LEGEND]
    parts += [MEASURED] if any(row.measured for row in rows) else []
    parts += [DIFFERENCE] if any(row.difference is not None for row in rows) else []
    parts += [PUBLISHED] if any(not row.measured for row in rows) else []
    return " ".join(parts)


def to_records(groups: Sequence[Group]) -> list[dict[str, object]]:
    """One flat record per row, for `--json` and CSV; None where a row has no such thing."""
    return [_record(group, row) for group in groups for row in group.rows]


def _record(group: Group, row: Row) -> dict[str, object]:
    found = row.provenance
    return {
        "dataset": group.dataset,
        "system": row.system,
        "measured": row.measured,
        "stream": row.stream,
        "data": row.data,
        **dict(zip(FIGURES, row.figures, strict=True)),
        "difference": row.difference,
        "checkpoint": found.checkpoint if found else None,
        "step": found.step if found else None,
        "data_digest": found.data_digest if found else None,
        "protocol": found.protocol if found else None,
        "k": found.k if found else None,
        "date": found.date if found else None,
        "note": row.note,
    }
