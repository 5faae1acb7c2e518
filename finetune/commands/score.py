"""`finetune score`, which is also `shards score` where this package is installed."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from finetune.commands.options import Ckpt, Device, Json, Overwrite


def score(
    folder: Annotated[Path, typer.Argument(help="Folder that `shards build` wrote.")],
    ckpt: Ckpt,
    out: Annotated[Path, typer.Option(help="Parquet file to write: shard, ordinal, similarity.")],
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score how well each image goes with its texts, for `shards filter --scores`.

    Example: shards score shards/cc3m --ckpt runs/first --out cc3m-scores.parquet
    """
    with contextlib.redirect_stdout(sys.stderr):  # deepspeed logs to the stdout that it finds: --json must stay JSON
        from finetune.similarity import score_shards, write_scores
    from shards.reader import ShardSet
    from shards.storage import check_new_file

    check_new_file(out, overwrite)
    shards = ShardSet(folder)
    scored = score_shards(str(ckpt), shards, device)
    write_scores(shards, scored, out)
    told = {"out": str(out), "samples": len(scored.indices_N), "left_out": scored.left_out}
    mean = float(scored.similarity_N.mean())
    line = f"{out}: {told['samples']} samples, mean similarity {mean:.3f}, {scored.left_out} damaged and left out"
    typer.echo(json.dumps(told | {"mean": mean}) if as_json else line)
