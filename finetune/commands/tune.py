"""`finetune retrieval`."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from finetune.commands.options import Annotations, Ckpt, Images, Overwrite, Shards


def retrieval(
    ckpt: Ckpt,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted.key=value, over the file.")] = None,
    annotations: Annotations = None,
    images: Images = None,
    split: Annotated[str, typer.Option(help="Split of --annotations.")] = "train",
    shards: Shards = None,
    validate: Annotated[
        str | None,
        typer.Option(help="Whose RSUM chooses the checkpoint: a split of --annotations, or a folder of shards."),
    ] = None,
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
    from finetune.validation import open_validation

    corpus = open_input(annotations, images, split, shards)
    checkpoint = fine_tune(ckpt, corpus.source, chosen, shards, open_validation(annotations, images, split, validate))
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"checkpoint: {checkpoint}")
