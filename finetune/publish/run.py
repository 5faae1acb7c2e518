"""`finetune publish` behind the command line: every refusal before anything is sent, the sending last."""

import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from finetune.publish.card import Statements
from finetune.publish.check import check_folder
from finetune.publish.export import CARD, check_source, export, read_measured
from finetune.publish.probe import reload_and_compare
from finetune.publish.upload import upload
from pretrain.checkpoint import load_checkpoint
from shards.errors import UserError
from shards.storage import replace_folder_atomically

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Request:
    """What was typed. `out` keeps the folder; `dry_run` sends nothing."""

    ckpt: str
    repo: str
    statements: Statements
    results: Sequence[Path] = ()
    private: bool = False
    dry_run: bool = False
    out: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Published:
    """What came of it; `commit` is None for a dry run, `apart` the largest difference that the fresh process found."""

    repo: str
    files: dict[str, int]
    apart: float
    commit: str | None


def publish(request: Request, say: Callable[[str], None]) -> Published:
    """Exports, checks, compares, sends.

    Raises:
        UserError: before anything is sent.
        Stopped: the export does not work, or the hub does not.
    """
    request.statements.check()
    if not REPO.fullmatch(request.repo):
        raise UserError(f"`--repo` (={request.repo}) must have the form USER/NAME")
    checkpoint = load_checkpoint(request.ckpt)
    check_source(checkpoint.path)
    measured = read_measured(request.results, checkpoint)
    token = _token()
    with ExitStack() as stack:
        if request.out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = stack.enter_context(replace_folder_atomically(request.out, request.overwrite, mark=CARD))
        export(folder, checkpoint, measured, request.repo, request.statements)
        check_folder(folder, [token or ""])
        apart = reload_and_compare(folder, checkpoint)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        commit = None if request.dry_run else upload(folder, request.repo, request.private, token, say)
    return Published(request.repo, files, apart, commit)


def _token() -> str | None:
    """The one that HF_TOKEN or `hf auth login` set."""
    from huggingface_hub import get_token

    return get_token()
