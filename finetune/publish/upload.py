"""Sends a folder to a hub as one commit, through huggingface_hub. What broke goes on where it was.

Large files go first, each under its sha256; a file that the hub already has is not sent again, so that a second call
with the same folder goes on behind what the first one finished. Readers see nothing before the commit, and then all of
it.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.hub import endpoint
from shards.errors import Stopped, UserError

ATTEMPTS, FIRST_WAIT = 4, 2.0  # seconds; each wait is twice the one before
TRANSIENT = {408, 429, 500, 502, 503, 504}


def upload(folder: Path, repo: str, private: bool, token: str | None, say: Callable[[str], None]) -> str:
    """Creates the repository where needed and commits the folder; returns the commit.

    Args:
        say: Told of each wait.

    Raises:
        UserError: a wrong token, a name that is not the user's, or a card that the hub refuses.
        Stopped: the hub did not answer in time; nothing that it finished is lost.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), token=token)
    _persistently(lambda: api.create_repo(repo, private=private or None, exist_ok=True), repo, say)
    return _persistently(lambda: _commit(api, folder, repo), repo, say)


def _commit(api: Any, folder: Path, repo: str) -> str:
    """Operations remember what was sent, so each attempt makes its own and asks the hub what it has."""
    from huggingface_hub import CommitOperationAdd

    operations = [
        CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=str(path)) for path in sorted(folder.iterdir())
    ]
    return api.create_commit(repo, operations, commit_message="Publish checkpoint").oid


def _persistently(attempt: Callable[[], Any], repo: str, say: Callable[[str], None]) -> Any:
    from huggingface_hub.errors import HfHubHTTPError

    for number in range(ATTEMPTS):
        try:
            return attempt()
        except ValueError as error:  # the hub's opinion of the card, or a name that cannot be one
            raise UserError(f"`--repo` (={repo}) is refused: {_sentence(error)}") from None
        except (HfHubHTTPError, OSError, RuntimeError, _network_error()) as error:
            status = _status(error)
            if status is not None and status not in TRANSIENT:
                raise UserError(f"`--repo` (={repo}) is refused: {_refusal(status, error)}") from None
            if number + 1 == ATTEMPTS:
                raise Stopped(
                    f"{repo} was not published: {_sentence(error)}; the same command goes on where this one stopped"
                ) from None
            wait = FIRST_WAIT * 2**number
            say(f"the hub failed ({_sentence(error)}); again in {wait:.0f} s")
            time.sleep(wait)
    raise AssertionError("unreachable")


def _network_error() -> type[Exception]:
    """The base of connection errors of the client that huggingface_hub is built on."""
    import httpx2

    return httpx2.TransportError


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error; failed large files wrap theirs."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def _refusal(status: int, error: BaseException) -> str:
    match status:
        case 401:
            return "the hub does not know this token; set HF_TOKEN, or sign in with `hf auth login`"
        case 403:
            return "the token may not write there; it needs the right to write, and the name must be yours"
        case _:
            return _sentence(error)


def _sentence(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__
