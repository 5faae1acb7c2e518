"""The `shards` command: build, verify, tokenizer."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shards.console import progress, run
from shards.errors import UserError

if TYPE_CHECKING:
    from shards.sources.base import Source
    from shards.write import Existing

app = typer.Typer(
    help="Image-text pairs as WebDataset shards: build, prove, use.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
build = typer.Typer(help="Packs a corpus into shards.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(build, name="build")

Out = Annotated[Path, typer.Option(help="Folder for the shards: new, empty, or see --resume and --overwrite.")]
PerShard = Annotated[int, typer.Option(help="Samples in each shard; the last may have fewer.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an unfinished build of the same settings.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the build in the folder first.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Split = Annotated[str, typer.Option(help="Which part of the corpus.")]


@build.command("scenes")
def build_scenes(
    samples: Annotated[int, typer.Option(help="Number of scenes.")],
    out: Out,
    seed: Annotated[int, typer.Option(help="Another seed gives other scenes.")] = 0,
    split: Split = "train",
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 64,
    samples_per_shard: PerShard = 1000,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Generated scenes of coloured, textured objects with captions, boxes and relations. No scene is in two splits.

    \b
    Example:
      shards build scenes --samples 10000 --split train --out data/scenes-train
    """
    from shards.sources.scenes import ScenesSource

    settings = {"samples": samples, "seed": seed, "split": split, "size": size}
    source = ScenesSource(samples, seed, split, size)
    _build(source, settings, out, samples_per_shard, _existing(resume, overwrite), as_json)


@build.command("karpathy")
def build_karpathy(
    annotations: Annotated[Path, typer.Option(help="Karpathy-form JSON.")],
    images: Annotated[Path, typer.Option(help="Folder that `filepath`/`filename` start from.")],
    out: Out,
    split: Annotated[str, typer.Option(help="Which part of the corpus; `train+restval` joins two.")] = "train",
    samples_per_shard: PerShard = 1000,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """COCO, Flickr30K or any corpus described in Karpathy form.

    \b
    Example:
      shards build karpathy --annotations dataset_coco.json --images coco --split train+restval --out data/coco-train
    """
    from shards.sources.karpathy import KarpathySource

    source = KarpathySource(annotations, images, split)
    _build(source, {"split": split}, out, samples_per_shard, _existing(resume, overwrite), as_json)


@build.command("coco")
def build_coco(
    annotations: Annotated[Path, typer.Option(help="Official COCO captions JSON.")],
    images: Annotated[Path, typer.Option(help="Folder that `file_name` starts from.")],
    out: Out,
    samples_per_shard: PerShard = 1000,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """COCO captions as published: one `captions_*.json` and its folder of images.

    \b
    Example:
      shards build coco --annotations captions_train2014.json --images coco/train2014 --out data/coco-train
    """
    from shards.sources.coco import CocoSource

    _build(CocoSource(annotations, images), {}, out, samples_per_shard, _existing(resume, overwrite), as_json)


@build.command("albef")
def build_albef(
    annotations: Annotated[Path, typer.Option(help="ALBEF-form JSON list.")],
    images: Annotated[Path, typer.Option(help="Folder that `image` starts from.")],
    out: Out,
    samples_per_shard: PerShard = 1000,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """A JSON list of image and caption, as ALBEF and BLIP read it.

    \b
    Example:
      shards build albef --annotations vg_train.json --images vg --out data/vg
    """
    from shards.sources.albef import AlbefSource

    _build(AlbefSource(annotations, images), {}, out, samples_per_shard, _existing(resume, overwrite), as_json)


@build.command("flickr30k")
def build_flickr30k(
    annotations: Annotated[Path, typer.Option(help="The `.token` file.")],
    images: Annotated[Path, typer.Option(help="Folder of the images.")],
    out: Out,
    samples_per_shard: PerShard = 1000,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Flickr30K as published: one `.token` file and its folder of images, all splits together.

    \b
    Example:
      shards build flickr30k --annotations results_20130124.token --images flickr30k-images --out data/flickr30k
    """
    from shards.sources.flickr30k import Flickr30kSource

    _build(Flickr30kSource(annotations, images), {}, out, samples_per_shard, _existing(resume, overwrite), as_json)


@build.command("conceptual-captions")
def build_conceptual_captions(
    annotations: Annotated[Path, typer.Option(help="Table of caption and URL.")],
    images: Annotated[Path, typer.Option(help="Folder that the files of the map start from.")],
    url_map: Annotated[Path, typer.Option("--map", help="URL to file: lines with a tab between, or a JSON object.")],
    out: Out,
    samples_per_shard: PerShard = 1000,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Conceptual Captions with images that are already here. Rows without one are skipped and counted.

    \b
    Example:
      shards build conceptual-captions --annotations cc3m.tsv --images cc3m --map files.tsv --out data/cc3m
    """
    from shards.sources.conceptual_captions import ConceptualCaptionsSource

    source = ConceptualCaptionsSource(annotations, images, url_map)
    settings = {"skipped": source.skipped}
    _build(source, settings, out, samples_per_shard, _existing(resume, overwrite), as_json, source.skipped)


@build.command("folder")
def build_folder(
    images: Annotated[Path, typer.Option(help="Folder of the images, nested or not.")],
    out: Out,
    table: Annotated[Path | None, typer.Option(help="CSV, TSV or parquet; else a .txt beside each image.")] = None,
    image_column: Annotated[str, typer.Option(help="Column of the path below the folder.")] = "image",
    caption_column: Annotated[str, typer.Option(help="Column of the text.")] = "caption",
    samples_per_shard: PerShard = 1000,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Images of one's own, with a .txt beside each (one caption per line) or a table of captions.

    \b
    Example:
      shards build folder --images birds --table birds.csv --caption-column text --out data/birds
    """
    from shards.sources.folder import FolderSource, TableSource

    if not table and (image_column, caption_column) != ("image", "caption"):
        raise UserError("`--image-column` and `--caption-column` need `--table`")
    source = TableSource(table, images, image_column, caption_column) if table else FolderSource(images)
    settings = {"image_column": image_column, "caption_column": caption_column} if table else {}
    _build(source, settings, out, samples_per_shard, _existing(resume, overwrite), as_json)


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
    _print(as_json, report.to_json, lines)
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
    _print(as_json, lambda: {"out": str(out), "tokens": tokens}, [f"{out}: {tokens} tokens"])


def _existing(resume: bool, overwrite: bool) -> "Existing":
    if resume and overwrite:
        raise UserError("`--resume` and `--overwrite` exclude each other")
    return "resume" if resume else "overwrite" if overwrite else "refuse"


def _build(
    source: "Source",
    settings: dict[str, Any],
    out: Path,
    per_shard: int,
    existing: "Existing",
    as_json: bool,
    skipped: int = 0,
) -> None:
    from shards.write import build_shards

    with progress(f"build {source.name}", len(source)) as bar:
        manifest = build_shards(
            source, out, samples_per_shard=per_shard, existing=existing, settings=settings, progress=bar
        )
    summary = {
        "out": str(out),
        "shards": len(manifest.shards),
        "samples": manifest.samples,
        "bytes": manifest.bytes,
        "digest": manifest.digest,
        "skipped": skipped,
    }
    line = f"{out}: {len(manifest.shards)} shards, {manifest.samples} samples, {manifest.bytes:,} bytes"
    line += f"; {skipped} rows skipped, as their image is not here" if skipped else ""
    _print(as_json, lambda: summary, [line])


def _print(as_json: bool, value: Callable[[], dict[str, Any]], lines: list[str]) -> None:
    sys.stdout.write(json.dumps(value()) + "\n" if as_json else "".join(f"{line}\n" for line in lines))


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
