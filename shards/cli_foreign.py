"""Commands for tars of other tools' making: `shards manifest` and `shards download`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.cli_build import ExecutorOption, Json, PerShard, Workers, print_result
from shards.console import progress

if TYPE_CHECKING:
    from shards.webdataset import ManifestResult


def add_foreign_commands(app: typer.Typer) -> None:
    app.command("manifest")(manifest_command)
    app.command("download", context_settings={"allow_extra_args": True})(download_command)


def manifest_command(
    folder: Annotated[Path, typer.Argument(help="A folder of WebDataset tars: img2dataset, LAION, your own.")],
    caption_field: Annotated[str | None, typer.Option(help="Captions from this field of KEY.json.")] = None,
    workers: Workers = 1,
    executor: ExecutorOption = "local",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do it again.")] = False,
    as_json: Json = False,
) -> None:
    """Makes a shard set of tars that are there, without changing a byte of them: an index beside each, and a manifest.

    \b
    Example:
      shards manifest laion400m
    """
    from shards.executors import Executor
    from shards.webdataset import find_tars, write_manifest

    where = Executor(executor, workers)  # type: ignore[arg-type]  # Checked there.
    with progress("manifest", len(find_tars(folder))) as bar:
        result = write_manifest(folder, caption_field, overwrite=overwrite, executor=where, progress=bar)
    _print(folder, result, as_json)


def download_command(
    context: typer.Context,
    urls: Annotated[Path, typer.Argument(help="cc3m.tsv, cc12m.tsv, sbu-captions-all.json, CSV, TSV or parquet.")],
    out: Annotated[Path, typer.Option(help="Folder for the tars; the same command goes on with what it holds.")],
    url_column: Annotated[str, typer.Option(help="Column of the address, where columns have names.")] = "url",
    caption_column: Annotated[str, typer.Option(help="Column of the text, likewise.")] = "caption",
    samples_per_shard: PerShard = 10_000,
    workers: Annotated[int, typer.Option(help="Processes of 32 threads each.")] = 1,
    program: Annotated[str, typer.Option(help="The program img2dataset.")] = "img2dataset",
    as_json: Json = False,
) -> None:
    """Fetches a list of addresses with img2dataset and indexes what came. Options behind -- go to img2dataset.

    \b
    Example:
      shards download cc3m.tsv --out data/cc3m --workers 16 -- --image_size 384 --resize_mode keep_ratio
    """
    from shards.download import download

    columns = {"url_column": url_column, "caption_column": caption_column}
    fetch = {"samples_per_shard": samples_per_shard, "workers": workers, "program": program}
    _print(out, download(urls, out, **columns, **fetch, options=context.args), as_json)  # type: ignore[arg-type]


def _print(folder: Path, result: "ManifestResult", as_json: bool) -> None:
    shards = result.manifest
    summary = {
        "folder": str(folder),
        "shards": len(shards.shards),
        "samples": shards.samples,
        "bytes": shards.bytes,
        "digest": shards.digest,
        "filtered": shards.filtered and shards.filtered.model_dump(),
        "notes": dict(result.notes),
        "faults": result.faults,
    }
    lines = [*result.faults, *(f"{count} {NOTES[name]}" for name, count in result.notes.items() if name in NOTES)]
    lines += shards.filtered.lines() if shards.filtered else []
    lines.append(f"{folder}: {len(shards.shards)} shards, {shards.samples} samples, {shards.bytes:,} bytes")
    print_result(as_json, lambda: summary, lines)


NOTES = {
    "other_members": "members of other types are left out",
    "dotted_keys": "keys have dots, and are told apart by all of them",
    "repeated_keys": "keys stand for several samples of one tar",
    "apart": "samples were put together from members that lie apart",
    "json_unreadable": "members .json hold no JSON object and are left out",
    "not_a_file": "members are links or devices and are not followed",
}
"""What `shards manifest` says of things that it can handle."""
