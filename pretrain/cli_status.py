"""`pretrain status`: how a run is doing."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pretrain.status import lines, read_status


def status(
    run: Annotated[Path, typer.Argument(help="The folder of a run: its `run.out`.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Tell how far a run is and whether it goes, also while it does.

    Example: pretrain status runs/first
    """
    found = read_status(run)
    typer.echo(json.dumps(asdict(found)) if as_json else "\n".join(lines(found)))
