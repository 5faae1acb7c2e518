"""The command `finetune`: one line for each of its commands, which live in `finetune/commands/`."""

from collections.abc import Sequence
from typing import Annotated

import typer

from finetune import cli_publish, cli_search
from finetune.commands.evaluate import evaluate
from finetune.commands.reproduce import reproduce
from finetune.commands.show import compare, report, table
from finetune.commands.tune import retrieval
from shards.console import run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def finetune(local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0) -> None:
    """Fine-tune for image-text retrieval, evaluate, compare, and print the table and the report."""
    # deepspeed's launcher puts --local_rank before the command's name; ranks are read from the environment


app.command(no_args_is_help=True)(retrieval)
app.command(no_args_is_help=True)(evaluate)
app.command()(table)
app.command(no_args_is_help=True)(compare)
app.command(no_args_is_help=True)(report)
app.command(no_args_is_help=True)(reproduce)
cli_search.register(app)
cli_publish.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    run(app, arguments)


if __name__ == "__main__":
    main()
