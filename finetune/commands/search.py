"""The commands `finetune index`, `search` and `serve`."""

import contextlib
import json
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.commands.options import Ckpt, Device, Json, Overwrite
from shards.errors import UserError

if TYPE_CHECKING:
    from finetune.search.index import IndexFacts
    from finetune.search.query import Answer


class KindName(StrEnum):
    """How the first stage finds its candidates."""

    exact = "exact"
    hnsw = "hnsw"
    ivfpq = "ivfpq"
    binary = "binary"


IndexFolder = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that `finetune index` wrote.")]
Moved = Annotated[str | None, typer.Option("--ckpt", help="Where the index's checkpoint lies, if it has moved.")]


def index(
    ckpt: Ckpt,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    shards: Annotated[Path | None, typer.Option(help="Folder that `shards build` wrote.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images; a .txt beside one holds captions.")] = None,
    kind: Annotated[KindName, typer.Option(help="How candidates are found.")] = KindName.exact,
    bits: Annotated[
        int | None, typer.Option(min=64, help="Length of the codes of --kind binary. [default: twice the embedding]")
    ] = None,
    codes: Annotated[Path | None, typer.Option(help="Folder that `finetune hash` wrote, for --kind binary.")] = None,
    recall: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of exact search's first ten to tune --kind for.")
    ] = 0.95,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make pictures searchable: encode each once, tune the search, and measure it with the captions there are.

    Example: finetune index --ckpt runs/tuned --images holiday --out holiday.index --kind hnsw
    """
    with contextlib.redirect_stdout(sys.stderr):  # deepspeed logs to the stdout that it finds: --json must stay JSON
        from finetune.search.build import Request, build_index

    request = Request(str(ckpt), shards, images, kind.value, bits, codes, recall, device)
    facts = build_index(request, out, overwrite)
    typer.echo(facts.model_dump_json(indent=1) if as_json else index_summary(facts, out))


def search(
    index: IndexFolder,
    text: Annotated[str, typer.Argument(help="What to look for.")] = "",
    image: Annotated[Path | None, typer.Option(help="A picture to look for, alone or with the text.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Pictures to print.")] = 10,
    rerank: Annotated[int, typer.Option(min=0, help="Candidates that the matching head orders again; 0 is off.")] = 0,
    ckpt: Moved = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Find pictures by a text, by a picture, or by both.

    Example: finetune search holiday.index "a red kite over water" --rerank 50
    """
    with contextlib.redirect_stdout(sys.stderr):  # as above
        from finetune.search.query import Query, Searcher

    searcher = Searcher.open(index, ckpt, device)
    query = Query(text, _picture(image) if image else None, k, rerank)
    searcher.check(query)
    searcher.warm_up()
    answer = searcher.search([query])[0]
    typer.echo(json.dumps(search_record(text, answer), indent=1) if as_json else search_summary(answer))


def serve(
    index: IndexFolder,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is reached from this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    ckpt: Moved = None,
    device: Device = None,
) -> None:
    """Serve a local web page: search by text or dropped picture, re-rank, see where each word is.

    Example: finetune serve holiday.index
    """
    from finetune.search.query import Searcher
    from finetune.search.server import is_loopback, serve

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    searcher = Searcher.open(index, ckpt, device)
    if not is_loopback(host):
        typer.echo(f"warning: whoever reaches {host} sees the pictures; nobody is asked who they are", err=True)
    with contextlib.suppress(KeyboardInterrupt):
        serve(searcher, host, port, lambda address: typer.echo(f"serving {index} at {address} (Ctrl-C ends)"))


def _picture(path: Path) -> Any:
    from shards.sample import Sample

    if not path.is_file():
        raise UserError(f"`image` (={path}) is not a file")
    return Sample(path.stem, path.read_bytes(), path.suffix[1:].lower(), ())


def index_summary(facts: "IndexFacts", out: Path) -> str:
    """What was made and how well it searches, in a few lines."""
    bits = f", {facts.bits} bits{' by a trained head' if facts.head else ''}" if facts.bits else ""
    lines = [f"index: {out}: {facts.images:,} pictures, {facts.embedding_dim} numbers each, {facts.kind}{bits}"]
    if facts.source.left_out:
        lines.append(f"left out: {facts.source.left_out:,} pictures that could not be read")
    found = facts.agreement
    if found is None:
        lines.append("recall@10 against exact search: not measured, as there are fewer than 20 captions")
    elif facts.kind != "exact":
        lines.append(
            f"recall@10 against exact search: {100 * found.found:.1f} % on {found.queries:,} captions "
            f"(effort {facts.effort}; {100 * found.unrefined:.1f} % without exact scores of the candidates)"
        )
    if found is not None:
        exact = "" if facts.kind == "exact" else f", exact search {found.exact_milliseconds:.2f} ms"
        lines.append(f"one query: {found.milliseconds:.2f} ms{exact}, after its text is encoded")
    return "\n".join(lines)


def search_record(text: str, answer: "Answer") -> dict[str, Any]:
    """For `--json`."""
    hits = [
        {"key": hit.key, "score": hit.score, "match": hit.match, "caption": hit.caption, "row": hit.row}
        for hit in answer.hits
    ]
    return {"query": text, "milliseconds": answer.milliseconds, "hits": hits}


def search_summary(answer: "Answer") -> str:
    """A line per picture."""
    lines = [
        f"{place:3}  {hit.score:6.3f}{'' if hit.match is None else f'  {hit.match:7.2f}'}  {hit.key}  {hit.caption}"
        for place, hit in enumerate(answer.hits, 1)
    ]
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in answer.milliseconds.items())
    return "\n".join([*lines, times])
