"""`finetune table`, `compare` and `report`: what reads results files."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finetune.commands.options import Json


class Format(StrEnum):
    """How a table is written."""

    md = "md"
    csv = "csv"
    latex = "latex"
    html = "html"


def table(
    results: Annotated[list[Path] | None, typer.Argument(help="Files that `finetune evaluate` wrote.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.md,
    only_measured: Annotated[bool, typer.Option("--only-measured", help="Leave published rows out.")] = False,
    as_json: Json = False,
) -> None:
    """Print measured rows beside the published ones of the same dataset; without files, all published rows.

    Example: finetune table runs/*/results.json --format html > table.html
    """
    from finetune.results import read_results, without_galleries
    from finetune.table import build_table, to_records
    from finetune.table_formats import write_table

    groups = build_table([read_results(path) for path in without_galleries(results or [])], only_measured)
    text = json.dumps(to_records(groups), indent=1, ensure_ascii=False) + "\n" if as_json else ""
    typer.echo(text or write_table(groups, form.value), nl=False)


def compare(
    first: Annotated[Path, typer.Argument(help="Results file, with its ranks beside it.")],
    second: Annotated[Path, typer.Argument(help="Results of the same data by the same protocol.")],
    any_rerank: Annotated[bool, typer.Option("--any-rerank", help="Let k and the matching score differ.")] = False,
    as_json: Json = False,
) -> None:
    """Say by how much the second is better, with a 95 % interval of each difference, paired by query.

    Example: finetune compare runs/base/results.json runs/tuned/results.json
    """
    from finetune.compare import compare_files, to_text

    found = compare_files(first, second, any_rerank)
    typer.echo(json.dumps(found.record(), indent=1) if as_json else to_text(found))


def report(
    places: Annotated[list[Path], typer.Argument(help="Results files, or run folders that hold them.")],
    out: Annotated[Path, typer.Option(help="The page to write; an earlier one is replaced.")] = Path("report.html"),
    runs: Annotated[list[Path] | None, typer.Option(help="More run folders, for their loss curves.")] = None,
) -> None:
    """Write one self-contained HTML page: table, comparison, loss curves, what is missed, results with pictures.

    Example: finetune report runs/tuned/results.json --runs runs/first --runs runs/tuned --out report.html
    """
    from finetune.report import write_report
    from finetune.results import without_galleries

    write_report(without_galleries(places), runs or [], out)
    typer.echo(f"report: {out}")
