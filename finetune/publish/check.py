"""The last look before anything leaves: known files alone, no pickles, nothing that looks like a secret.

Patterns name what the common services issue; a false alarm costs a word, a leaked token an account.
"""

import json
import re
import struct
from pathlib import Path

from finetune.publish.export import AUTO, AUTO_TOKENIZER, CARD, PREPROCESSING
from pretrain.checkpoint import CONFIG, STATE, WEIGHTS
from pretrain.data.tokenizer import FILE as TOKENIZER
from shards.errors import UserError

NEEDED = (WEIGHTS, CONFIG, TOKENIZER, STATE, AUTO, AUTO_TOKENIZER, PREPROCESSING, CARD)
RESULTS = re.compile(r"results(-\d+)?\.json")
SECRETS = {
    "a hub token": r"\bhf_[A-Za-z0-9]{20,}",
    "an API key": r"\b(sk|pk|rk)[-_](live|test|proj|ant|or)?[-_]?[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{18,}",
    "an AWS key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": r"\bxox[abposr]-[A-Za-z0-9-]{10,}",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a password in a URL": r"[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/@\"']+@",
    "a named secret": (
        r"(?i)\b(api[_-]?key|secret|password|passwd|access[_-]?token|auth[_-]?token|wandb[_-]?key)\b"
        r"[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+_.-]{8,}"
    ),
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in SECRETS.items()}


def check_folder(folder: Path, own_tokens: list[str]) -> None:
    """Looks at every byte that is about to be sent.

    Args:
        own_tokens: What must not appear whatever it looks like: the token that will send.

    Raises:
        UserError: a file that is missing, unknown, a link, a pickle, or holds what looks like a secret.
    """
    names = {path.name for path in folder.iterdir()}
    if missing := [name for name in NEEDED if name not in names]:
        raise UserError(f"the export lacks {missing[0]}")
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{path.name} is no plain file, so it is not published")
        if path.name not in NEEDED and not RESULTS.fullmatch(path.name):
            raise UserError(f"{path.name} is not among the files that are published")
        if is_pickle(path):
            raise UserError(f"{path.name} is a pickle, which runs code when it is opened, so it is not published")
        _check_text(path, own_tokens)


def is_pickle(path: Path) -> bool:
    """By the first bytes, whatever the name: a pickle of protocol 2 or newer, or a zip, as torch.save writes."""
    with path.open("rb") as file:
        start = file.read(4)
    return start[:4] == b"PK\x03\x04" or (len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5)


def find_secret(text: str, own_tokens: list[str]) -> str | None:
    """What looks like a secret in `text`, in words and without the secret; None where nothing does."""
    if any(token in text for token in own_tokens if token):
        return "your own token"
    return next((name for name, pattern in _PATTERNS.items() if pattern.search(text)), None)


def _check_text(path: Path, own_tokens: list[str]) -> None:
    try:
        text = weights_header(path) if path.name == WEIGHTS else path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, ValueError):
        raise UserError(f"{path.name} is not what its name says, so it is not published") from None
    if found := find_secret(text, own_tokens):
        where = next((number for number, line in enumerate(text.splitlines(), 1) if find_secret(line, own_tokens)), 1)
        raise UserError(f"line {where} of {path.name} looks like {found}: take it out, then publish again")


def weights_header(path: Path) -> str:
    """The JSON before the tensors, where metadata can say anything. Raises ValueError where it is no safetensors."""
    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= size <= min(100 << 20, path.stat().st_size - 8):
            raise ValueError("no safetensors header")
        text = file.read(size).decode()
    json.loads(text)
    return text
