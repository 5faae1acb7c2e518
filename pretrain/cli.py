"""The command `pretrain`; `launch/pretrain.sh` calls the same under a launcher."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pretrain.cli_plan import plan
from pretrain.cli_status import status
from pretrain.models.convert import commands
from shards.console import run
from shards.errors import UserError


class TrainByDefault(TyperGroup):
    """`pretrain --config FILE` means `pretrain train --config FILE`: launchers pass words of their own in front."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["train", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=TrainByDefault, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
SYSTEMS = Path("configs/systems")


@app.callback()
def about() -> None:
    """Pretrain vision-language models. Without a command's name, `train` is meant.

    Example: pretrain --config configs/pretrain/demo.yaml data.shards=shards/train run.out=runs/first
    """


@app.command(no_args_is_help=True)
def train(
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


@app.command()
def systems(
    folder: Annotated[Path, typer.Option(help="Where the configurations of the systems lie.")] = SYSTEMS,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """List the published systems that a configuration describes, each built without memory and counted.

    Example: pretrain systems --json > systems.json
    """
    import json
    from dataclasses import asdict

    from pretrain.systems import find_systems, read_system, table

    rows = [read_system(file) for file in find_systems(folder)]
    if as_json:
        typer.echo(json.dumps([asdict(row) | {"state": row.state} for row in rows], indent=1))
    else:
        typer.echo(table(rows))


@app.command()
def tiny(
    file: Annotated[Path, typer.Argument(help="A configuration, for example configs/systems/uniter.yaml.")],
    labels: Annotated[Path, typer.Option(help="What `pretrain labels` wrote for the scenes.")],
) -> None:
    """Print a configuration made small enough for generated scenes and two cores.

    Example: pretrain tiny configs/systems/uniter.yaml --labels labels.json > uniter-tiny.yaml
    """
    from pretrain.config import PretrainConfig
    from pretrain.settings import dump_config, load_config
    from pretrain.systems import shrink

    typer.echo(dump_config(shrink(load_config(PretrainConfig, file), labels)), nl=False)


@app.command()
def labels(
    shards: Annotated[Path, typer.Argument(help="A folder that `shards build` wrote.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write.")],
) -> None:
    """Number the names that the regions of a shard set carry, for `data.regions.labels`.

    Example: pretrain labels shards/train --out labels.json
    """
    from pretrain.data.labels import RegionVocabulary
    from shards.reader import ShardSet

    source = ShardSet(shards)
    found = RegionVocabulary.of(source[index] for index in range(len(source)))
    found.write(out)
    typer.echo(f"{out}: {len(found.labels)} labels, {len(found.attributes)} attributes")


app.command(no_args_is_help=True)(status)
app.command(no_args_is_help=True)(plan)
app.command("import")(commands.import_)
app.command("export")(commands.export)


def resume_override(resume: bool, overwrite: bool) -> list[str]:
    """The flags as a configuration override."""
    if resume and overwrite:
        raise UserError("`--resume` and `--overwrite` exclude each other")
    return ["run.resume=auto"] if resume else ["run.resume=overwrite"] if overwrite else []


def main(arguments: Sequence[str] | None = None) -> None:
    run(app, arguments)


if __name__ == "__main__":
    main()
