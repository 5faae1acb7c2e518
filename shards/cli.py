"""The `shards` command: build (see `shards.cli_sources`), manifest and download (`shards.cli_foreign`), ..."""

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.cli_build import (
    ExecutorOption,
    FilterOption,
    Json,
    Overwrite,
    PerShard,
    Preset,
    Resume,
    Workers,
    build_source,
    print_result,
)
from shards.cli_foreign import add_foreign_commands
from shards.cli_sources import build
from shards.console import progress, run
from shards.errors import UserError
from shards.storage import check_new_file

if TYPE_CHECKING:
    from shards.reader import ShardSet
    from shards.sources.base import Source

app = typer.Typer(
    help="Image-text pairs as WebDataset shards: build, prove, use.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(build, name="build")
add_foreign_commands(app)
for command in entry_points(group="duostream.shards"):  # `score` needs models, which this package must not know
    app.command(command.name)(command.load())


@app.command("verify")
def verify_command(
    folder: Annotated[Path, typer.Argument(help="A folder that `shards build` finished.")], as_json: Json = False
) -> None:
    """Re-reads every byte and names what is damaged and lost; the exit status is 1 if anything is.

    \b
    Example:
      shards verify data/scenes-train
    """
    from shards.manifest import read_manifest
    from shards.verify import verify

    with progress("verify", read_manifest(folder).samples) as bar:
        report = verify(folder, bar)
    lines = [str(finding) for finding in report.findings]
    state = "sound" if report.ok else f"damaged, {report.lost} samples lost"
    lines.append(f"{report.folder}: {report.shards} shards, {report.samples} samples, {report.bytes:,} bytes: {state}")
    print_result(as_json, report.to_json, lines)
    if not report.ok:
        raise typer.Exit(1)


@app.command("stats")
def stats_command(
    folder: Annotated[Path, typer.Argument(help="A folder that `shards build` or `shards manifest` finished.")],
    look: Annotated[int, typer.Option(help="Samples to look into, for tags, regions and languages.")] = 1000,
    as_json: Json = False,
) -> None:
    """Counts, sizes and caption lengths of all samples; tags, regions and languages of some.

    \b
    Example:
      shards stats data/coco-train
    """
    from shards.stats import lines, stats

    found = stats(folder, look)
    print_result(as_json, found.to_json, lines(found))


@app.command("inspect")
def inspect_command(
    folder: Annotated[Path, typer.Argument(help="A folder that `shards build` or `shards manifest` finished.")],
    html: Annotated[Path, typer.Option(help="The page to write: one file that needs nothing else.")],
    samples: Annotated[int, typer.Option(help="Samples to show, spread evenly.")] = 60,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: Json = False,
) -> None:
    """A page with samples, their captions and boxes, histograms and what the filters did.

    \b
    Example:
      shards inspect data/coco-train --html coco.html
    """
    from shards.inspect import write_page

    check_new_file(html, overwrite)
    shown = write_page(folder, html, samples)
    print_result(as_json, lambda: {"html": str(html), "samples": shown}, [f"{html}: {shown} samples"])


@app.command("filter")
def filter_command(
    folder: Annotated[Path, typer.Argument(help="A folder that `shards build` finished.")],
    out: Annotated[Path | None, typer.Option(help="Folder for new shards of what is kept.")] = None,
    selection: Annotated[Path | None, typer.Option("--list", help="Or a list of it, for the same shards.")] = None,
    samples_per_shard: PerShard = 1000,
    resume: Resume = False,
    overwrite: Overwrite = False,
    preset: Preset = None,
    filters: FilterOption = None,
    scores: Annotated[Path | None, typer.Option(help="Parquet of shard, ordinal and numbers that filters see.")] = None,
    workers: Workers = 1,
    executor: ExecutorOption = "local",
    as_json: Json = False,
) -> None:
    """Keeps what passes the filters: as new shards, or as a list of samples of the shards that are there.

    \b
    Example:
      shards filter data/cc3m --preset datacomp --filter exact_duplicates=true --out data/cc3m-clean
    """
    from shards.reader import ShardSet
    from shards.scores import ScoredShards

    if (out is None) == (selection is None):
        raise UserError("give one of `--out` and `--list`")
    if not preset and not filters:
        raise UserError("`shards filter` needs `--preset` or `--filter`")
    shards = ShardSet(folder)
    source = ScoredShards(shards, scores) if scores else shards
    if out:
        arguments = (out, samples_per_shard, resume, overwrite, preset, filters, workers, executor, as_json)
        build_source(source, {}, *arguments)
    elif selection:
        _select(source, shards, selection, overwrite, preset, filters or [], workers, executor, as_json)


def _select(
    source: "Source",
    shards: "ShardSet",
    out: Path,
    overwrite: bool,
    preset: str | None,
    filters: list[str],
    workers: int,
    executor: str,
    as_json: bool,
) -> None:
    from shards.executors import Executor
    from shards.filters import parse_filters
    from shards.scan import scan
    from shards.selection import write_selection

    check_new_file(out, overwrite)
    asked, where = parse_filters(preset, filters), Executor(executor, workers)  # type: ignore[arg-type]
    with progress(f"filter {shards.name}", len(shards)) as bar:
        found = scan(source, asked, where, progress=bar)
    write_selection(shards, found.kept, out)
    lines = [*found.report.lines(), f"{out}: {found.report.kept} samples of {shards.address}"]
    print_result(as_json, lambda: {"out": str(out), "filtered": found.report.model_dump()}, lines)


@app.command("tokenizer")
def tokenizer_command(
    folder: Annotated[Path, typer.Argument(help="A folder that `shards build` finished.")],
    out: Annotated[Path, typer.Option(help="The tokenizer.json or .model to write.")],
    kind: Annotated[str, typer.Option(help="wordpiece, or sentencepiece.")] = "wordpiece",
    vocab_size: Annotated[int, typer.Option(help="Largest number of tokens.")] = 30000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: Json = False,
) -> None:
    """Trains a lower-case WordPiece or sentencepiece tokenizer on the captions.

    \b
    Example:
      shards tokenizer data/scenes-train --out data/tokenizer.json --vocab-size 4000
    """
    from shards.tokenizer import write_tokenizer

    check_new_file(out, overwrite)
    tokens = write_tokenizer(folder, out, vocab_size, kind)  # type: ignore[arg-type]  # Checked there.
    print_result(as_json, lambda: {"out": str(out), "tokens": tokens}, [f"{out}: {tokens} tokens"])


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
