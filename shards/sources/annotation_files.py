"""Annotation files: which of the known forms one has, and reading it or naming the command that does.

Bytes that are not UTF-8 become surrogate escapes: `shards.soundness` rejects the captions that have them, one by one,
and file names that have them still lead to their files.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.errors import UserError

FORMS = {
    "karpathy": "a Karpathy file",
    "coco": "an official COCO captions file",
    "albef": "an ALBEF list",
    "flickr30k": "a Flickr30K token file",
    "conceptual-captions": "a Conceptual Captions table",
    "folder": "a table with named columns",
}
"""What the file that `shards build NAME` reads is called."""

HEAD = 1 << 16
ESCAPED = "surrogateescape"
TOKEN_LINE = re.compile(r"(?P<name>[^\t]+)#(?P<number>\d+)\t(?P<caption>.*)")
URL_LINE = re.compile(r"(?P<caption>[^\t]+)\t(?P<url>[^\t\s]+://[^\t]+)")
URL_FIRST_LINE = re.compile(r"(?P<url>[^\t\s]+://[^\t]+)\t(?P<caption>[^\t]+)")


def read_json_form(path: Path, reader: str, needed: str) -> Any:
    """Parses the JSON file of `shards build READER`.

    Raises:
        UserError: no file, not JSON, or another form.
    """
    require_file("annotations", path)
    if form := text_form(path):
        raise another_form("annotations", path, form, needed)
    content = read_json(path)
    form = json_form(content)
    if form != reader:
        raise another_form("annotations", path, form, needed)
    return content


def read_text_form(path: Path, reader: str, needed: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers, of the text file of `shards build READER`.

    Raises:
        UserError: no file, or another form.
    """
    require_file("annotations", path)
    form = form_of(path)
    if form != reader:
        raise another_form("annotations", path, form, needed)
    return read_lines(path)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank with their numbers from 1. Only a line feed ends a line: captions hold the rest."""
    with path.open("rb") as file:
        for number, content in enumerate(file, 1):
            line = content.decode("utf-8-sig" if number == 1 else "utf-8", ESCAPED).rstrip("\r\n")
            if line.strip():
                yield number, line


def read_json(path: Path, option: str = "annotations") -> Any:
    """Raises UserError where the file is missing or no JSON."""
    require_file(option, path)
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig", ESCAPED))
    except (ValueError, RecursionError) as error:
        raise UserError(f"`{option}` (={path}) is not JSON: {error}") from None


def require_file(option: str, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"`{option}` (={path}) must be a file")


def form_of(path: Path) -> str | None:
    """Which `shards build` reads the file, by its content; None where its form is unknown."""
    form = text_form(path)
    if form or not _head(path).lstrip().startswith((b"{", b"[")):
        return form
    try:
        return json_form(json.loads(path.read_bytes().decode("utf-8-sig", ESCAPED)))
    except (ValueError, RecursionError):
        return None


def json_form(content: Any) -> str | None:
    """The same for parsed JSON, by its outermost shape."""
    if isinstance(content, dict) and {"annotations", "images"} <= content.keys():
        return "coco"
    if isinstance(content, list) and content and _has(content[0], "image", "caption"):
        return "albef"
    images = content.get("images") if isinstance(content, dict) else None
    if isinstance(images, list) and images and _has(images[0], "filename", "sentences"):
        return "karpathy"
    return None


def text_form(path: Path) -> str | None:
    """The same for what is not JSON, by the first line."""
    head = _head(path)
    if path.suffix.lower() == ".csv" or head.startswith(b"PAR1"):
        return "folder"
    line = head.decode("utf-8-sig", "replace").lstrip("\r\n").split("\n")[0].rstrip("\r")
    if TOKEN_LINE.fullmatch(line):
        return "flickr30k"
    return "conceptual-captions" if URL_LINE.fullmatch(line) or URL_FIRST_LINE.fullmatch(line) else None


def another_form(option: str, path: Path, form: str | None, needed: str) -> UserError:
    """The error for a file that its command cannot use and that has `form`."""
    state = f"looks like {FORMS[form]}, which `shards build {form}` reads" if form else "has an unknown form"
    return UserError(f"`{option}` (={path}) {state}; this needs {needed}")


def bad_entry(path: Path, place: str, needed: str) -> UserError:
    """The error for a file of the right form with an entry of another."""
    return UserError(f"`annotations` (={path}) has {place} of another form; this needs {needed}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _has(entry: Any, *fields: str) -> bool:
    return isinstance(entry, dict) and entry.keys() >= set(fields)
