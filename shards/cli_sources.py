"""`shards build SOURCE`: a function per source, which takes the source's own options and returns the source.

`@build_command` adds the options that all builds share, and does the building.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.cli_build import build, build_command
from shards.errors import UserError

if TYPE_CHECKING:
    from shards.sources.base import Source

__all__ = ["build"]

Split = Annotated[str, typer.Option(help="Which part of the corpus.")]
Images = Annotated[Path, typer.Option(help="Folder of the images.")]
MappedImages = Annotated[Path, typer.Option(help="Folder that the files of the map start from.")]
UrlMap = Annotated[Path, typer.Option("--map", help="URL to file: lines with a tab between, or a JSON object.")]


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
    images: Images,
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
    images: MappedImages,
    url_map: UrlMap,
) -> "Source":
    """Conceptual Captions with images that are already here. Rows without one are skipped and counted.

    \b
    Example:
      shards build conceptual-captions --annotations cc3m.tsv --images cc3m --map files.tsv --out data/cc3m
    """
    from shards.sources.conceptual_captions import ConceptualCaptionsSource

    return ConceptualCaptionsSource(annotations, images, url_map)


@build_command("sbu")
def build_sbu(
    annotations: Annotated[Path, typer.Option(help="sbu-captions-all.json, or ..._urls.txt beside ..._captions.txt.")],
    images: MappedImages,
    url_map: UrlMap,
) -> "Source":
    """SBU Captioned Photos with images that are already here. Rows without one are skipped and counted.

    \b
    Example:
      shards build sbu --annotations sbu-captions-all.json --images sbu --map files.tsv --out data/sbu
    """
    from shards.sources.sbu import SbuSource

    return SbuSource(annotations, images, url_map)


@build_command("visual-genome")
def build_visual_genome(
    annotations: Annotated[Path, typer.Option(help="region_descriptions.json.")],
    image_data: Annotated[Path, typer.Option(help="image_data.json.")],
    images: Annotated[Path, typer.Option(help="Folder that holds VG_100K and VG_100K_2.")],
    attributes: Annotated[Path | None, typer.Option(help="attributes.json: objects become the regions.")] = None,
    relationships: Annotated[Path | None, typer.Option(help="relationships.json, between those objects.")] = None,
) -> "Source":
    """Visual Genome: region descriptions as captions, with boxes, attributes and relations.

    \b
    Example:
      shards build visual-genome --annotations region_descriptions.json --image-data image_data.json --images . --out vg
    """
    from shards.sources.visual_genome import VisualGenomeSource

    return VisualGenomeSource(annotations, image_data, images, attributes, relationships)


@build_command("bottom-up")
def build_bottom_up(
    features: Annotated[Path, typer.Option(help="The table of regions: base64 columns with tabs between.")],
    annotations: Annotated[Path, typer.Option(help="The captions: Karpathy, COCO or ALBEF form.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images; else the regions alone.")] = None,
    split: Annotated[str, typer.Option(help="Which part, in Karpathy form.")] = "train",
    objects: Annotated[Path | None, typer.Option(help="Names of the object classes, one in each line.")] = None,
    attributes: Annotated[Path | None, typer.Option(help="Names of the attribute classes.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Features as float16: half the bytes.")] = False,
) -> "Source":
    """A corpus with the regions and features of bottom-up attention. Images without regions are skipped and counted.

    \b
    Example:
      shards build bottom-up --features train2014_obj36.tsv --annotations coco.json --images coco --out coco-regions
    """
    from shards.sources.albef import AlbefSource
    from shards.sources.annotation_files import form_of, require_file
    from shards.sources.bottom_up import BottomUpSource
    from shards.sources.coco import CocoSource
    from shards.sources.karpathy import KarpathySource

    require_file("annotations", annotations)
    form = form_of(annotations)
    corpus = (
        {"coco": CocoSource, "albef": AlbefSource}[form](annotations, images) if form in ("coco", "albef") else None
    )
    return BottomUpSource(corpus or KarpathySource(annotations, images, split), features, objects, attributes, half)


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
