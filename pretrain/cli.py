"""The command `pretrain`; `launch/pretrain.sh` calls the same under a launcher."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from shards.console import run
from shards.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(no_args_is_help=True)
def pretrain(
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted.key=value, over the file.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; see configs/pretrain/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in `run.out`, or start it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run in `run.out` first.")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,  # deepspeed's launcher passes it
) -> None:
    """Pretrain a vision-language model on shards.

    Example: pretrain --config configs/pretrain/demo.yaml data.shards=shards/train run.out=runs/first run.steps=500
    """
    from pretrain.config import PretrainConfig
    from pretrain.settings import load_config

    chosen = load_config(PretrainConfig, config, [*(overrides or []), *resume_override(resume, overwrite)])
    from pretrain.train import fit  # seconds of imports: after the configuration is known to be right

    checkpoint = fit(chosen)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"checkpoint: {checkpoint}")


def resume_override(resume: bool, overwrite: bool) -> list[str]:
    """The flags as a configuration override."""
    if resume and overwrite:
        raise UserError("`--resume` and `--overwrite` exclude each other")
    return ["run.resume=auto"] if resume else ["run.resume=overwrite"] if overwrite else []


def main(arguments: Sequence[str] | None = None) -> None:
    run(app, arguments)


if __name__ == "__main__":
    main()
