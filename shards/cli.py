"""The `shards` command: build (see `shards.cli_build`), verify, tokenizer."""

from pathlib import Path
from typing import Annotated

import typer

from shards.cli_build import Json, build, print_result
from shards.console import progress, run
from shards.errors import UserError

app = typer.Typer(
    help="Image-text pairs as WebDataset shards: build, prove, use.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(build, name="build")


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


@app.command("tokenizer")
def tokenizer_command(
    folder: Annotated[Path, typer.Argument(help="A folder that `shards build` finished.")],
    out: Annotated[Path, typer.Option(help="The tokenizer.json to write.")],
    vocab_size: Annotated[int, typer.Option(help="Largest number of tokens.")] = 30000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: Json = False,
) -> None:
    """Trains a lower-case WordPiece tokenizer on the captions.

    \b
    Example:
      shards tokenizer data/scenes-train --out data/tokenizer.json --vocab-size 4000
    """
    from shards.tokenizer import write_tokenizer

    if out.exists() and not overwrite:
        raise UserError(f"`out` (={out}) exists: give --overwrite to replace it")
    tokens = write_tokenizer(folder, out, vocab_size)
    print_result(as_json, lambda: {"out": str(out), "tokens": tokens}, [f"{out}: {tokens} tokens"])


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
