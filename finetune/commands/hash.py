"""`finetune hash`."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.commands.options import Annotations, Ckpt, Device, Images, Json, Overwrite, Shards

if TYPE_CHECKING:
    from finetune.search.head import HeadFacts


def hash_head(
    ckpt: Ckpt,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    shards: Shards = None,
    annotations: Annotations = None,
    images: Images = None,
    split: Annotated[str, typer.Option(help="Split of --annotations.")] = "train",
    bits: Annotated[int, typer.Option(min=64, help="Length of the codes, a multiple of 64.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training, some 20 ms each on one core.")] = 600,
    most: Annotated[int, typer.Option(min=1, help="Images to learn from at most, spread evenly.")] = 20_000,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a head that makes short binary codes of a checkpoint's embeddings, for `finetune index --codes`.

    The checkpoint stays as it is. A tenth of the captions measure the codes and train nothing.

    Example: finetune hash --ckpt runs/tuned --shards shards/coco --bits 64 --out coco.codes
    """
    with contextlib.redirect_stdout(sys.stderr):  # deepspeed logs to the stdout that it finds: --json must stay JSON
        from finetune.retrieval import open_input
        from finetune.search.head import Request, build_head

    source = open_input(annotations, images, split, shards).source
    facts = build_head(Request(str(ckpt), source, bits, steps, most, device), out, overwrite)
    typer.echo(facts.model_dump_json(indent=1) if as_json else hash_summary(facts, out))


def hash_summary(facts: "HeadFacts", out: Path) -> str:
    """What was trained, and beside what needs no training."""
    lines = [f"codes: {out}: {facts.bits} bits, learned from {facts.images:,} pictures and {facts.captions:,} captions"]
    found = facts.comparison
    if found is None:
        lines.append("recall@10 of the codes against exact search: not measured, as there are too few captions")
    else:
        lines.append(
            f"recall@10 of the codes alone against exact search, {found.captions:,} captions held out: "
            f"{100 * found.trained:.1f} %; signs after a rotation {100 * found.rotation:.1f} %, of random projections "
            f"{100 * found.gaussian:.1f} %"
        )
    return "\n".join(lines)
