"""The table as Markdown, CSV, LaTeX and HTML."""

import csv
import io
from collections.abc import Callable, Sequence

from finetune.pages import render
from finetune.table import Group, Row, legend, to_records

HEADERS = ("System", "Stream", "Data", "i2t@1", "i2t@5", "i2t@10", "t2i@1", "t2i@5", "t2i@10", "RSUM", "Diff.", "Note")
LEFT = 3  # columns of text before those of figures
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
LATEX |= {character: "\\" + character for character in "&%$#_{}"}


def write_table(groups: Sequence[Group], form: str) -> str:
    """The table as text; `form` is one of WRITERS."""
    return WRITERS[form](groups)


def to_markdown(groups: Sequence[Group]) -> str:
    """Aligned for a terminal; notes stand below their table so that rows stay short."""
    return "\n".join([part for group in groups for part in _markdown_group(group)] + [legend(groups), ""])


def _markdown_group(group: Group) -> list[str]:
    cells = [_cells(row, number, "**{}**") for number, row in enumerate(group.rows, start=1)]
    widths = [max(len(row[i]) for row in [list(HEADERS), *cells]) for i in range(len(HEADERS))]
    ruler = [("-" * width) if i < LEFT else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = [_line(row, widths) for row in [list(HEADERS), ruler, *cells]]
    notes = [f"{number}. {row.note}" for number, row in enumerate(group.rows, start=1)]
    return [f"## {group.title}", "", *lines, "", *notes, ""]


def _cells(row: Row, number: int, bold: str) -> list[str]:
    system = bold.format(row.system) if row.measured else row.system
    difference = "" if row.difference is None else f"{row.difference:+.1f}"
    return [system, row.stream, row.data, *map(_figure, row.figures), difference, str(number)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [c.ljust(w) if i < LEFT else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return f"| {' | '.join(aligned)} |"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def to_csv(groups: Sequence[Group]) -> str:
    """One line per row, figures in full precision, empty where there is none."""
    target = io.StringIO()
    records = to_records(groups)
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(records[0] if records else [])
    writer.writerows([_plain(value) for value in record.values()] for record in records)
    return target.getvalue()


def _plain(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def to_latex(groups: Sequence[Group]) -> str:
    r"""One `table` for each dataset, in plain LaTeX with `booktabs`; notes as a list below."""
    return "\n".join(line for group in groups for line in _latex_group(group)) + f"% {legend(groups)}\n"


def _latex_group(group: Group) -> list[str]:
    rows = [_latex_row(row, number) for number, row in enumerate(group.rows, start=1)]
    figures = len(HEADERS) - LEFT
    return [
        r"\begin{table}",
        rf"\caption{{Image-text retrieval on {_latex(group.title)}}}",
        rf"\begin{{tabular}}{{{'l' * LEFT}{'r' * figures}}}",
        r"\toprule",
        r" & & & \multicolumn{3}{c}{image to text} & \multicolumn{3}{c}{text to image} & & & \\",
        " & ".join(["System", "Stream", "Data", *["R@1", "R@5", "R@10"] * 2, "RSUM", "Diff.", "Note"]) + r" \\",
        r"\midrule",
        *(" & ".join(cells) + r" \\" for cells in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\begin{enumerate}\footnotesize",
        *(rf"\item {_latex(row.note)}" for row in group.rows),
        r"\end{enumerate}",
        r"\end{table}",
        "",
    ]


def _latex_row(row: Row, number: int) -> list[str]:
    system, *others = (_latex(cell) for cell in _cells(row, number, "{}"))
    return [rf"\textbf{{{system}}}" if row.measured else system, *others]


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def to_html(groups: Sequence[Group]) -> str:
    """A whole page that needs nothing else."""
    return render("table.html", groups=groups, legend=legend(groups))


WRITERS: dict[str, Callable[[Sequence[Group]], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
    "html": to_html,
}
