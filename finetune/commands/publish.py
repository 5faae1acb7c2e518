"""The command `finetune publish`."""

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.commands.options import Ckpt, Json, Overwrite
from shards.errors import UserError

if TYPE_CHECKING:
    from finetune.publish.run import Published


def publish(
    ckpt: Ckpt,
    repo: Annotated[str, typer.Option(help="USER/NAME on the hub; created where needed.")],
    license: Annotated[str, typer.Option("--license", help="Licence of the weights, such as apache-2.0.")] = "",
    data: Annotated[str, typer.Option(help="What it was trained on, in a sentence or two.")] = "",
    data_license: Annotated[str, typer.Option(help="Under which terms those pairs could be used.")] = "",
    results: Annotated[list[Path] | None, typer.Option(help="results.json of these weights, for the card.")] = None,
    limitations: Annotated[str, typer.Option(help="What it should not be used for; text, or @FILE.")] = "",
    citation: Annotated[str, typer.Option(help="BibTeX, or @FILE. [default: of the repository]")] = "",
    train_command: Annotated[str, typer.Option(help="The command that trained it, for the card.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Create the repository for its owner alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Make and check the folder; send nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="Keep the folder here.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Publish a checkpoint: weights, configuration, tokenizer and a model card with what was measured.

    A fresh process opens the folder and must compute the same before anything is sent. After a broken upload the same
    command goes on. HF_TOKEN, or `hf auth login`, says who sends.

    Example: finetune publish --ckpt runs/tuned --repo ada/kites --license apache-2.0 --data "9,000 photos of kites
    with captions" --data-license cc-by-4.0 --results results.json
    """
    with contextlib.redirect_stdout(sys.stderr):  # deepspeed logs to the stdout that it finds: --json must stay JSON
        from finetune.publish.card import Statements
        from finetune.publish.run import Request, publish

    texts = {"limitations": _text("limitations", limitations), "citation": _text("citation", citation)}
    statements = Statements(license, data, data_license, train_command=train_command, **texts)
    request = Request(str(ckpt), repo, statements, results or (), private, dry_run, out, overwrite)
    published = publish(request, lambda line: typer.echo(line, err=True))
    typer.echo(json.dumps(asdict(published), indent=1) if as_json else summary(published, out))


def _text(option: str, value: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"`--{option}` (={value}) must name a file of text behind the @") from None


def summary(published: "Published", out: Path | None) -> str:
    """What was made, and where it is."""
    size = sum(published.files.values())
    lines = [f"export: {len(published.files)} files, {size:,} bytes{f', in {out}' if out else ''}"]
    lines.append(f"opened by a fresh process: largest difference {published.apart:.1e}")
    if published.commit:
        lines.append(f"published: hf:{published.repo}@{published.commit}")
    else:
        lines.append("dry run: nothing was sent")
    return "\n".join(lines)
