"""What `shards build SOURCE` has in common: options, building, summary; `shards.cli_sources` has the sources."""

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shards.console import progress
from shards.errors import UserError

if TYPE_CHECKING:
    from shards.manifest import Manifest
    from shards.sources.base import Source
    from shards.write import Existing

build = typer.Typer(help="Packs a corpus into shards.", no_args_is_help=True, rich_markup_mode=None)

Out = Annotated[Path, typer.Option(help="Folder for the shards: new, empty, or see --resume and --overwrite.")]
PerShard = Annotated[int, typer.Option(help="Samples in each shard; the last may have fewer.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an unfinished build of the same settings.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the build in the folder first.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Preset = Annotated[str | None, typer.Option(help="Filters to start from: datacomp, or a YAML file of them.")]
FilterOption = Annotated[list[str] | None, typer.Option("--filter", help="NAME=VALUE, repeatable; over the preset.")]
Workers = Annotated[int, typer.Option(help="Processes; the bytes do not depend on it.")]
ExecutorOption = Annotated[str, typer.Option("--executor", help="local, or ray: the cluster of RAY_ADDRESS.")]


def build_source(
    source: "Source",
    settings: dict[str, Any],
    out: Path,
    samples_per_shard: int = 1000,
    resume: bool = False,
    overwrite: bool = False,
    preset: str | None = None,
    filters: list[str] | None = None,
    workers: int = 1,
    executor: str = "local",
    as_json: bool = False,
) -> None:
    """Builds and prints a summary."""
    from shards.executors import Executor
    from shards.filters import parse_filters
    from shards.write import build_shards

    asked = parse_filters(preset, filters or [])
    where = Executor(executor, workers)  # type: ignore[arg-type]  # Checked there.
    passes = 2 if asked.settings else 1
    with progress(f"build {source.name}", passes * len(source)) as bar:
        manifest = build_shards(
            source,
            out,
            samples_per_shard=samples_per_shard,
            existing=_existing(resume, overwrite),
            settings=settings,
            filters=asked,
            executor=where,
            progress=bar,
        )
    _print_summary(out, manifest, getattr(source, "skipped", 0), as_json)


def build_command(name: str) -> Callable[[Callable[..., "Source"]], Callable[..., "Source"]]:
    """Registers `shards build NAME`. Options of the function that are no paths become settings of the manifest."""

    def register(make: Callable[..., "Source"]) -> Callable[..., "Source"]:
        own = inspect.signature(make).parameters
        shared = {key: p for key, p in inspect.signature(build_source).parameters.items() if key in _SHARED}

        def command(**options: Any) -> None:
            arguments = {key: options.pop(key) for key in own}
            source = make(**arguments)
            settings = {key: value for key, value in arguments.items() if not isinstance(value, Path | None)}
            build_source(source, settings, **options)

        parameters = [*own.values(), *(p.replace(annotation=_SHARED[key]) for key, p in shared.items())]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = make.__doc__
        build.command(name)(command)
        return make

    return register


_SHARED: dict[str, Any] = {
    "out": Out,
    "samples_per_shard": PerShard,
    "resume": Resume,
    "overwrite": Overwrite,
    "preset": Preset,
    "filters": FilterOption,
    "workers": Workers,
    "executor": ExecutorOption,
    "as_json": Json,
}


def _existing(resume: bool, overwrite: bool) -> "Existing":
    if resume and overwrite:
        raise UserError("`--resume` and `--overwrite` exclude each other")
    return "resume" if resume else "overwrite" if overwrite else "refuse"


def _print_summary(out: Path, manifest: "Manifest", skipped: int, as_json: bool) -> None:
    summary = {
        "out": str(out),
        "shards": len(manifest.shards),
        "samples": manifest.samples,
        "bytes": manifest.bytes,
        "digest": manifest.digest,
        "skipped": skipped,
        "filtered": manifest.filtered and manifest.filtered.model_dump(),
    }
    lines = manifest.filtered.lines() if manifest.filtered else []
    line = f"{out}: {len(manifest.shards)} shards, {manifest.samples} samples, {manifest.bytes:,} bytes"
    line += f"; {skipped} rows skipped, as their image or its regions are not here" if skipped else ""
    print_result(as_json, lambda: summary, [*lines, line])


def print_result(as_json: bool, value: Callable[[], dict[str, Any]], lines: list[str]) -> None:
    sys.stdout.write(json.dumps(value()) + "\n" if as_json else "".join(f"{line}\n" for line in lines))
