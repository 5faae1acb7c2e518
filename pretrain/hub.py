"""Checkpoints and weights on a model hub, fetched by huggingface_hub into its cache. Only named files, never a pickle.

    USER/NAME                            where no such local path exists; the newest of the main branch
    hf:USER/NAME[@REVISION]              a branch, a tag, or best a commit
    https://HOST/USER/NAME/tree/REVISION a hub elsewhere, always with its revision

HF_ENDPOINT names another hub for the first two, HF_TOKEN opens private repositories, HF_HUB_OFFLINE stays in the cache.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import Stopped, UserError

# A command line option that is read as a path folds the two slashes of a URL into one.
_URL = re.compile(
    r"(?P<scheme>https?):/{1,2}(?P<host>[^/@\s]+)/(?P<repo>[^/@\s]+/[^/@\s]+?)/?(/tree/(?P<revision>\S+?))?/?"
)
_ID = re.compile(r"(?P<hf>hf:)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^\s@]+))?")


@dataclass(frozen=True)
class HubPlace:
    """A repository at a revision; `endpoint` None is the one that HF_ENDPOINT names, or the public hub."""

    repo: str
    revision: str
    endpoint: str | None = None

    def pinned(self, commit: str) -> str:
        """The place of one commit of it, as `hub_place` reads it."""
        return f"{self.endpoint}/{self.repo}/tree/{commit}" if self.endpoint else f"hf:{self.repo}@{commit}"


def hub_place(place: str | Path, parameter: str = "ckpt") -> HubPlace | None:
    """What `place` names on a hub; None where it can only be a local path. `parameter` is the setting, for messages.

    Raises:
        UserError: a URL without a revision, or `hf:` before something that is no repository.
    """
    text = str(place)
    if match := _URL.fullmatch(text):
        if match["revision"] is None:
            raise UserError(f"`{parameter}` (={text}) must name a revision: https://HOST/USER/NAME/tree/REVISION")
        return HubPlace(match["repo"], match["revision"], f"{match['scheme']}://{match['host']}")
    match = _ID.fullmatch(text)
    if text.startswith("hf:") and match is None:
        raise UserError(f"`{parameter}` (={text}) must have the form hf:USER/NAME or hf:USER/NAME@REVISION")
    if match is None or (match["hf"] is None and Path(text).parts and Path(Path(text).parts[0]).exists()):
        return None
    return HubPlace(match["repo"], match["revision"] or "main")


def fetch(place: HubPlace, files: Sequence[str], parameter: str = "ckpt") -> Path:
    """The folder in the cache that holds those of `files` that the repository has; its name is the commit.

    Every rank may call it: the cache's locks let one process of a node download while the others wait for it.

    Raises:
        UserError: no such repository or revision, or a private one without a token that opens it.
        Stopped: the hub does not answer, and the cache does not have it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"{place.repo}@{place.revision}"
    try:
        found = snapshot_download(
            place.repo, revision=place.revision, allow_patterns=[*files], endpoint=place.endpoint or endpoint()
        )
    except RevisionNotFoundError:
        raise UserError(f"`{parameter}` (={name}): the repository has no such revision") from None
    except GatedRepoError:
        raise UserError(f"`{parameter}` (={name}) is gated: ask its owner for access, then set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"`{parameter}` (={name}) is neither here nor on the hub, or HF_TOKEN does not open it"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise Stopped(f"{name} could not be fetched: {reason}") from None
    return Path(found)


def cached(place: HubPlace, files: Sequence[str]) -> Path | None:
    """The folder that `fetch` left in the cache, without any network; None where not all of `files` are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(place.repo, revision=place.revision, allow_patterns=[*files], local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return Path(folder) if all((Path(folder) / name).is_file() for name in files) else None


def endpoint() -> str | None:
    """The hub that HF_ENDPOINT names; None is huggingface_hub's own default."""
    return os.environ.get("HF_ENDPOINT") or None
