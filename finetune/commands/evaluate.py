"""`finetune evaluate`."""

import contextlib
import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.commands.options import Annotations, Ckpt, Device, Images, Json, Overwrite, Shards

if TYPE_CHECKING:
    from finetune.results import Results


class Captions(StrEnum):
    """Which captions of an image take part."""

    all = "all"
    first5 = "first5"


class Score(StrEnum):
    """What orders the re-ranked candidates."""

    itm = "itm"
    itm_itc = "itm+itc"


def evaluate(
    ckpt: Ckpt,
    out: Annotated[Path, typer.Option(help="Results file to write; ranks and pictures go beside it.")],
    annotations: Annotations = None,
    images: Images = None,
    split: Annotated[str, typer.Option(help="Split of --annotations.")] = "test",
    shards: Shards = None,
    rerank: Annotated[
        int | None, typer.Option(min=0, help="Candidates re-ranked per query; 0 is off. [default: 32 if it can match]")
    ] = None,
    every_pair: Annotated[
        bool, typer.Option("--every-pair", help="Match every image with every text; slow. [always without ITC]")
    ] = False,
    score: Annotated[Score, typer.Option(help="What orders the candidates.")] = Score.itm,
    captions: Annotated[Captions, typer.Option(help="Captions of each image that take part.")] = Captions.all,
    compat: Annotated[
        list[str] | None, typer.Option(help="Also what this code prints: vse++, uniter, oscar, albef, blip, vilt ...")
    ] = None,
    compat_images: Annotated[Path | None, typer.Option(help="Fixed list of images for oscar, one id a line.")] = None,
    group_by: Annotated[str | None, typer.Option(help="Metadata field: count confusions between its groups.")] = None,
    name: Annotated[str | None, typer.Option(help="Label of the row. [default: the run folder's name]")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="coco_5k, coco_1k or flickr30k to stand beside published rows, or any heading.")
    ] = None,
    system: Annotated[str, typer.Option(help="Published system that this reproduces, to stand under its row.")] = "",
    trained_on: Annotated[str, typer.Option(help="Pretraining data, for the table.")] = "",
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure retrieval in both directions and write results.json; under a launcher the ranks share the work.

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
            every_pair=every_pair,
            score=score.value,
            captions=captions.value,
            compat=tuple(compat or ()),
            compat_images=compat_images,
            group_by=group_by,
            name=name,
            dataset=dataset,
            system=system,
            trained_on=trained_on,
            device=device,
            command=shlex.join(["finetune", *sys.argv[1:]]),
        )
        results = measure(request, out, overwrite)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(results.model_dump_json(indent=1) if as_json else summary(results, out))


def summary(results: "Results", out: Path) -> str:
    """A line for each direction, RSUM, and what published evaluators print."""
    lines = [
        f"{title}  R@1 {way.pessimistic.r1:5.1f}  R@5 {way.pessimistic.r5:5.1f}  R@10 {way.pessimistic.r10:5.1f}"
        for title, way in (("image to text", results.i2t), ("text to image", results.t2i))
    ]
    low, high = results.rsum.intervals.rsum
    rsum = f"RSUM {results.rsum.pessimistic:.1f} of 600 (95 % interval {low:.1f} to {high:.1f})"
    printed = [
        f"as {mode.mode} prints it: {' '.join(f'{v:.1f}' for v in (*mode.i2t, *mode.t2i))} ({mode.difference})"
        for mode in results.compatibility
    ]
    if wide := results.extended:
        printed.append(
            f"ECCV-Caption mAP@R {wide.i2t.eccv_map_at_r:.1f} and {wide.t2i.eccv_map_at_r:.1f}, "
            f"CxC R@1 {wide.i2t.cxc_r1:.1f} and {wide.t2i.cxc_r1:.1f}"
        )
    return "\n".join([*lines, rsum, *printed, f"results: {out}"])
