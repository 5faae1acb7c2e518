"""`finetune reproduce`."""

import contextlib
import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finetune.commands.options import Device


class Corpus(StrEnum):
    """A dataset with published rows."""

    coco = "coco"
    flickr30k = "flickr30k"


def reproduce(
    system: Annotated[str, typer.Argument(help="A system of `finetune table`: ViLT, METER, ALBEF ...")],
    data: Annotated[Corpus, typer.Option(help="Which dataset.")],
    images: Annotated[Path, typer.Option(help="Folder that the file names of the annotations start from.")],
    ckpt: Annotated[str | None, typer.Option(help="Checkpoint or run folder, or USER/NAME of a hub.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Karpathy-form JSON. [default: dataset_DATA.json in or beside --images]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write. [default: runs/reproduce/SYSTEM]")] = None,
    rerank: Annotated[
        int | None,
        typer.Option(min=10, help="Match only the best K of each query. [default: as the paper did]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it needs, and stop.")] = False,
    device: Device = None,
) -> None:
    """From a checkpoint and a dataset folder to the row of a published system; says first what it needs.

    Example: finetune reproduce ViLT --data flickr30k --images flickr30k-images --ckpt USER/NAME --dry-run
    """
    speaks = os.environ.get("RANK", "0") == "0"
    with contextlib.redirect_stdout(sys.stderr):  # deepspeed logs to the stdout that it finds
        from finetune.reproduce import Asked, carry_out, plan
        from finetune.table import build_table
        from finetune.table_formats import to_markdown

        folder = out or Path("runs") / "reproduce" / system
        command = shlex.join(["finetune", *sys.argv[1:]])
        asked = Asked(system, data.value, images, annotations, ckpt, folder, rerank, device, command)
        planned = plan(asked)
    if speaks:
        typer.echo("\n".join(planned.lines(folder)))
    if not dry_run:
        with contextlib.redirect_stdout(sys.stderr):
            results = carry_out(asked, planned)
        if speaks:
            typer.echo("\n" + to_markdown(build_table(results)), nl=False)
