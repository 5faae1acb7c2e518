"""`shards build SOURCE`: a function per source, which takes the source's own options and returns the source.

`@build_command` adds the options that all builds share, and does the building.
"""

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
Preset = Annotated[str | None, typer.Option(help="Filters that people know: datacomp.")]
FilterOption = Annotated[list[str] | None, typer.Option("--filter", help="NAME=VALUE, repeatable; over the preset.")]
Workers = Annotated[int, typer.Option(help="Processes; the bytes do not depend on it.")]
ExecutorOption = Annotated[str, typer.Option("--executor", help="local, or ray: the cluster of RAY_ADDRESS.")]
Split = Annotated[str, typer.Option(help="Which part of the corpus.")]


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


@build_command("scenes")
def build_scenes(
    samples: Annotated[int, typer.Option(help="Number of scenes.")],
    seed: Annotated[int, typer.Option(help="Another seed gives other scenes.")] = 0,
    split: Split = "train",
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 64,
) -> "Source":
    """Generated scenes of coloured, textured objects with captions, boxes and relations. No scene is in two splits.

    \b
    Example:
      shards build scenes --samples 10000 --split train --out data/scenes-train
    """
    from shards.sources.scenes import ScenesSource

    return ScenesSource(samples, seed, split, size)


@build_command("karpathy")
def build_karpathy(
    annotations: Annotated[Path, typer.Option(help="Karpathy-form JSON.")],
    images: Annotated[Path, typer.Option(help="Folder that `filepath`/`filename` start from.")],
    split: Annotated[str, typer.Option(help="Which part of the corpus; `train+restval` joins two.")] = "train",
) -> "Source":
    """COCO, Flickr30K or any corpus described in Karpathy form.

    \b
    Example:
      shards build karpathy --annotations dataset_coco.json --images coco --split train+restval --out data/coco-train
    """
    from shards.sources.karpathy import KarpathySource

    return KarpathySource(annotations, images, split)


@build_command("coco")
def build_coco(
    annotations: Annotated[Path, typer.Option(help="Official COCO captions JSON.")],
    images: Annotated[Path, typer.Option(help="Folder that `file_name` starts from.")],
) -> "Source":
    """COCO captions as published: one `captions_*.json` and its folder of images.

    \b
    Example:
      shards build coco --annotations captions_train2014.json --images coco/train2014 --out data/coco-train
    """
    from shards.sources.coco import CocoSource

    return CocoSource(annotations, images)


@build_command("albef")
def build_albef(
    annotations: Annotated[Path, typer.Option(help="ALBEF-form JSON list.")],
    images: Annotated[Path, typer.Option(help="Folder that `image` starts from.")],
) -> "Source":
    """A JSON list of image and caption, as ALBEF and BLIP read it.

    \b
    Example:
      shards build albef --annotations vg_train.json --images vg --out data/vg
    """
    from shards.sources.albef import AlbefSource

    return AlbefSource(annotations, images)


@build_command("flickr30k")
def build_flickr30k(
    annotations: Annotated[Path, typer.Option(help="The `.token` file.")],
    images: Annotated[Path, typer.Option(help="Folder of the images.")],
) -> "Source":
    """Flickr30K as published: one `.token` file and its folder of images, all splits together.

    \b
    Example:
      shards build flickr30k --annotations results_20130124.token --images flickr30k-images --out data/flickr30k
    """
    from shards.sources.flickr30k import Flickr30kSource

    return Flickr30kSource(annotations, images)


@build_command("conceptual-captions")
def build_conceptual_captions(
    annotations: Annotated[Path, typer.Option(help="Table of caption and URL.")],
    images: Annotated[Path, typer.Option(help="Folder that the files of the map start from.")],
    url_map: Annotated[Path, typer.Option("--map", help="URL to file: lines with a tab between, or a JSON object.")],
) -> "Source":
    """Conceptual Captions with images that are already here. Rows without one are skipped and counted.

    \b
    Example:
      shards build conceptual-captions --annotations cc3m.tsv --images cc3m --map files.tsv --out data/cc3m
    """
    from shards.sources.conceptual_captions import ConceptualCaptionsSource

    return ConceptualCaptionsSource(annotations, images, url_map)


@build_command("folder")
def build_folder(
    images: Annotated[Path, typer.Option(help="Folder of the images, nested or not.")],
    table: Annotated[Path | None, typer.Option(help="CSV, TSV or parquet; else a .txt beside each image.")] = None,
    image_column: Annotated[str, typer.Option(help="Column of the path below the folder.")] = "image",
    caption_column: Annotated[str, typer.Option(help="Column of the text.")] = "caption",
) -> "Source":
    """Images of one's own, with a .txt beside each (one caption per line) or a table of captions.

    \b
    Example:
      shards build folder --images birds --table birds.csv --caption-column text --out data/birds
    """
    from shards.sources.folder import FolderSource, TableSource

    if not table and (image_column, caption_column) != ("image", "caption"):
        raise UserError("`--image-column` and `--caption-column` need `--table`")
    return TableSource(table, images, image_column, caption_column) if table else FolderSource(images)


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
    line += f"; {skipped} rows skipped, as their image is not here" if skipped else ""
    print_result(as_json, lambda: summary, [*lines, line])


def print_result(as_json: bool, value: Callable[[], dict[str, Any]], lines: list[str]) -> None:
    sys.stdout.write(json.dumps(value()) + "\n" if as_json else "".join(f"{line}\n" for line in lines))
