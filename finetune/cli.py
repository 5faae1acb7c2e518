"""The command `finetune`: retrieval, evaluate, table, report. Torch is imported when a command needs it."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune import cli_publish, cli_search
from shards.console import run

if TYPE_CHECKING:
    from finetune.results import Results

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune for image-text retrieval, evaluate, and print the table and the report.",
)


class Format(StrEnum):
    """How a table is written."""

    md = "md"
    csv = "csv"
    html = "html"


class Captions(StrEnum):
    """Which captions of an image take part."""

    all = "all"
    first5 = "first5"


class Score(StrEnum):
    """What orders the re-ranked candidates."""

    itm = "itm"
    itm_itc = "itm+itc"


Ckpt = Annotated[Path, typer.Option("--ckpt", help="Checkpoint folder, or run folder for its latest checkpoint.")]
Annotations = Annotated[Path | None, typer.Option(help="Karpathy-form JSON; needs --images.")]
Images = Annotated[Path | None, typer.Option(help="Folder that the file names of --annotations start from.")]
Shards = Annotated[Path | None, typer.Option(help="Folder that `shards build` wrote, in place of --annotations.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(no_args_is_help=True)
def retrieval(
    ckpt: Ckpt,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted.key=value, over the file.")] = None,
    annotations: Annotations = None,
    images: Images = None,
    split: Annotated[str, typer.Option(help="Split of --annotations.")] = "train",
    shards: Shards = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; see configs/finetune/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, or start it.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a checkpoint for retrieval.

    Example: finetune retrieval --ckpt runs/first --shards shards/train --out runs/tuned run.steps=500
    """
    from finetune.config import FinetuneConfig
    from pretrain.cli import resume_override
    from pretrain.settings import load_config

    flags = [f"run.out={json.dumps(str(out))}", *resume_override(resume, overwrite)]
    chosen = load_config(FinetuneConfig, config, [*(overrides or []), *flags])
    from finetune.retrieval import open_input
    from finetune.train import fine_tune

    corpus = open_input(annotations, images, split, shards)
    checkpoint = fine_tune(ckpt, corpus.source, chosen, shards)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"checkpoint: {checkpoint}")


@app.command(no_args_is_help=True)
def evaluate(
    ckpt: Ckpt,
    out: Annotated[Path, typer.Option(help="Results file to write; pictures go to NAME.gallery.json beside it.")],
    annotations: Annotations = None,
    images: Images = None,
    split: Annotated[str, typer.Option(help="Split of --annotations.")] = "test",
    shards: Shards = None,
    rerank: Annotated[
        int | None, typer.Option(min=0, help="Candidates re-ranked per query; 0 is off. [default: 32 if it can match]")
    ] = None,
    score: Annotated[Score, typer.Option(help="What orders the candidates.")] = Score.itm,
    captions: Annotated[Captions, typer.Option(help="Captions of each image that take part.")] = Captions.all,
    name: Annotated[str | None, typer.Option(help="Label of the row. [default: the run folder's name]")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="coco_5k, coco_1k or flickr30k to stand beside published rows, or any heading.")
    ] = None,
    trained_on: Annotated[str, typer.Option(help="Pretraining data, for the table.")] = "",
    device: Annotated[str | None, typer.Option(help="cpu or cuda. [default: cuda where there is one]")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure retrieval in both directions and write results.json.

    Example: finetune evaluate --ckpt runs/tuned --annotations dataset.json --images images --out results.json
    """
    with contextlib.redirect_stdout(sys.stderr):  # deepspeed logs to the stdout that it finds: --json must stay JSON
        from finetune.measure import Request, measure

    request = Request(
        ckpt=ckpt,
        annotations=annotations,
        images=images,
        split=split,
        shards=shards,
        rerank=rerank,
        score=score.value,
        captions=captions.value,
        name=name,
        dataset=dataset,
        trained_on=trained_on,
        device=device,
        command=shlex.join(["finetune", *sys.argv[1:]]),
    )
    results = measure(request, out, overwrite)
    typer.echo(results.model_dump_json(indent=1) if as_json else summary(results, out))


@app.command()
def table(
    results: Annotated[list[Path] | None, typer.Argument(help="Files that `finetune evaluate` wrote.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.md,
    only_measured: Annotated[bool, typer.Option("--only-measured", help="Leave published rows out.")] = False,
    as_json: Json = False,
) -> None:
    """Print measured rows beside the published ones of the same dataset; without files, all published rows.

    Example: finetune table runs/*/results.json --format html > table.html
    """
    from finetune import table as tables
    from finetune.results import read_results

    groups = tables.build_table([read_results(path) for path in results or []], only_measured)
    if as_json:
        typer.echo(json.dumps(tables.to_records(groups), indent=1, ensure_ascii=False))
        return
    write = {Format.md: tables.to_markdown, Format.csv: tables.to_csv, Format.html: tables.to_html}[form]
    typer.echo(write(groups), nl=False)


@app.command(no_args_is_help=True)
def report(
    places: Annotated[list[Path], typer.Argument(help="Results files, or run folders that hold them.")],
    out: Annotated[Path, typer.Option(help="The page to write; an earlier one is replaced.")] = Path("report.html"),
    runs: Annotated[list[Path] | None, typer.Option(help="More run folders, for their loss curves.")] = None,
) -> None:
    """Write one self-contained HTML page: table, loss curves, first results with pictures, worst failures.

    Example: finetune report runs/tuned/results.json --runs runs/first --runs runs/tuned --out report.html
    """
    from finetune.report import write_report

    write_report(places, runs or [], out)
    typer.echo(f"report: {out}")


cli_search.register(app)
cli_publish.register(app)


def summary(results: "Results", out: Path) -> str:
    """A line for each direction and RSUM."""
    lines = [
        f"{title}  R@1 {way.pessimistic.r1:5.1f}  R@5 {way.pessimistic.r5:5.1f}  R@10 {way.pessimistic.r10:5.1f}"
        for title, way in (("image to text", results.i2t), ("text to image", results.t2i))
    ]
    low, high = results.rsum.intervals.rsum
    rsum = f"RSUM {results.rsum.pessimistic:.1f} of 600 (95 % interval {low:.1f} to {high:.1f})"
    return "\n".join([*lines, rsum, f"results: {out}"])


def main(arguments: Sequence[str] | None = None) -> None:
    run(app, arguments)


if __name__ == "__main__":
    main()
