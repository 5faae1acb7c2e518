"""The command `finetune`: one line for each of its commands, which live in `finetune/commands/`."""

from collections.abc import Sequence
from typing import Annotated

import typer

from finetune.commands.evaluate import evaluate
from finetune.commands.hash import hash_head
from finetune.commands.publish import publish
from finetune.commands.reproduce import reproduce
from finetune.commands.score import score
from finetune.commands.search import index, search, serve
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
    """Fine-tune for image-text retrieval, evaluate, compare, print the table and the report, search, publish."""
    # deepspeed's launcher puts --local_rank before the command's name; ranks are read from the environment


app.command(no_args_is_help=True)(retrieval)
app.command(no_args_is_help=True)(evaluate)
app.command()(table)
app.command(no_args_is_help=True)(compare)
app.command(no_args_is_help=True)(report)
app.command(no_args_is_help=True)(reproduce)
app.command(no_args_is_help=True)(score)
app.command("hash", no_args_is_help=True)(hash_head)
app.command(no_args_is_help=True)(index)
app.command(no_args_is_help=True)(search)
app.command(no_args_is_help=True)(serve)
app.command(no_args_is_help=True)(publish)


def main(arguments: Sequence[str] | None = None) -> None:
    run(app, arguments)


if __name__ == "__main__":
    main()
