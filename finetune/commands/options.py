"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Ckpt = Annotated[
    Path, typer.Option("--ckpt", help="Checkpoint folder, run folder for its best or latest, or hf:USER/NAME.")
]
Annotations = Annotated[Path | None, typer.Option(help="Karpathy-form JSON; needs --images.")]
Images = Annotated[Path | None, typer.Option(help="Folder that the file names of --annotations start from.")]
Shards = Annotated[Path | None, typer.Option(help="Folder that `shards build` wrote, in place of --annotations.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. [default: cuda where there is one]")]
