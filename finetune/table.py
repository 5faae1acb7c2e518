"""The results table: published rows beside measured ones, grouped by dataset, as Markdown, CSV, HTML or JSON.

Measured figures come from results files alone, and they are the pessimistic ones. Published figures are as printed.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.pages import render
from finetune.published import FIGURES, Published, published_results
from finetune.results import Results

TITLES = {"coco_5k": "COCO 5K", "coco_1k": "COCO 1K", "flickr30k": "Flickr30K"}
HEADERS = ("System", "Stream", "Data", "i2t@1", "i2t@5", "i2t@10", "t2i@1", "t2i@5", "t2i@10", "RSUM", "Note")
LEGEND = (
    "Recall in percent at 1, 5 and 10: i2t finds the texts of an image, t2i the image of a text; RSUM is their sum."
)
MEASURED = "Bold rows are measured here, ties counted against the system."
PUBLISHED = (
    "Others are as published. CC Conceptual Captions, VG Visual Genome, SBU the SBU captions, Books the BooksCorpus."
)


@dataclass(frozen=True)
class Row:
    """One line; `figures` are the six recalls and RSUM, None where there is none."""

    system: str
    stream: str
    data: str
    figures: tuple[float | None, ...]
    note: str
    measured: bool


@dataclass(frozen=True)
class Group:
    """The rows of one dataset, published ones first."""

    dataset: str
    rows: list[Row]

    @property
    def title(self) -> str:
        return TITLES.get(self.dataset, self.dataset)


def build_table(results: Sequence[Results], only_measured: bool = False) -> list[Group]:
    """Groups the rows by dataset: the datasets of `results`, or every published one where no result is given."""
    published = [] if only_measured else published_results()
    measured = {result.data.dataset for result in results}
    order = dict.fromkeys([*TITLES, *(result.data.dataset for result in results)])
    wanted = [name for name in order if name in measured or not results]
    groups = [
        Group(
            name,
            [_published_row(row) for row in published if row.dataset == name]
            + [_measured_row(result) for result in results if result.data.dataset == name],
        )
        for name in wanted
    ]
    return [group for group in groups if group.rows]


def _published_row(row: Published) -> Row:
    note = "; ".join(part for part in (row.source, row.note) if part)
    return Row(row.system, row.stream, row.pretraining_data, row.figures, note, measured=False)


def _measured_row(result: Results) -> Row:
    i2t, t2i = result.i2t.pessimistic, result.t2i.pessimistic
    figures = (i2t.r1, i2t.r5, i2t.r10, t2i.r1, t2i.r5, t2i.r10, result.rsum.pessimistic)
    return Row(result.name, result.stream, result.pretraining_data, figures, provenance(result), measured=True)


def provenance(result: Results) -> str:
    """Where a measured row comes from, in one line."""
    low, high = result.rsum.intervals.rsum
    protocol = result.protocol
    parts = [
        f"checkpoint {result.checkpoint.digest[:12]} step {result.checkpoint.step}",
        f"data {result.data.digest[:12]} ({result.data.images} images, {result.data.texts} texts)",
        f"re-ranked k={protocol.rerank} by {protocol.score}" if protocol.rerank else "no re-ranking",
        f"captions {protocol.captions}",
        *([f"mean of {protocol.folds} folds"] if protocol.folds > 1 else []),
        f"RSUM 95 % interval {low:.1f} to {high:.1f}",
        result.date[:10],
    ]
    return "; ".join(parts)


def legend(groups: Sequence[Group]) -> str:
    """Explains what the tables show, and no more."""
    rows = [row for group in groups for row in group.rows]
    parts = [LEGEND]
    parts += [MEASURED] if any(row.measured for row in rows) else []
    parts += [PUBLISHED] if any(not row.measured for row in rows) else []
    return " ".join(parts)


def to_markdown(groups: Sequence[Group]) -> str:
    """Aligned for a terminal; notes stand below their table so that rows stay short."""
    return "\n".join([part for group in groups for part in _markdown_group(group)] + [legend(groups), ""])


def _markdown_group(group: Group) -> list[str]:
    notes = [row.note for row in group.rows]
    cells = [
        [
            f"**{row.system}**" if row.measured else row.system,
            row.stream,
            row.data,
            *(_figure(value) for value in row.figures),
            str(number),
        ]
        for number, row in enumerate(group.rows, start=1)
    ]
    widths = [max(len(row[i]) for row in [list(HEADERS), *cells]) for i in range(len(HEADERS))]
    ruler = [("-" * width) if i < 3 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = [_line(row, widths) for row in [list(HEADERS), ruler, *cells]]
    return [f"## {group.title}", "", *lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, start=1)), ""]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return f"| {' | '.join(aligned)} |"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def to_csv(groups: Sequence[Group]) -> str:
    """One line per row, figures in full precision, empty where there is none."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["dataset", "system", "measured", "stream", "data", *FIGURES, "note"])
    for group in groups:
        for row in group.rows:
            figures = ["" if value is None else f"{value:.4f}".rstrip("0").rstrip(".") for value in row.figures]
            writer.writerow([group.dataset, row.system, int(row.measured), row.stream, row.data, *figures, row.note])
    return target.getvalue()


def to_html(groups: Sequence[Group]) -> str:
    """A whole page that needs nothing else."""
    return render("table.html", groups=groups, legend=legend(groups))


def to_records(groups: Sequence[Group]) -> list[dict[str, object]]:
    """For `--json`: one flat record per row."""
    return [
        {
            "dataset": group.dataset,
            "system": row.system,
            "measured": row.measured,
            "stream": row.stream,
            "data": row.data,
            **dict(zip(FIGURES, row.figures, strict=True)),
            "note": row.note,
        }
        for group in groups
        for row in group.rows
    ]
