"""Where each setting of a shipped configuration is from, read off the comments behind it.

A comment that starts with a tag covers the settings of its line, and behind a bare `key:` the block under it; of two
that cover a setting the nearer one holds. The tags: `verified` was read in the official code, whose repository and
files stand at the head of the file, or in that of transformers; `paper-only` is from the paper and was not checked in
code; `ours` is said by neither and was chosen here, or stands for what is not as there. A number of steps is as its
epochs are.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

TAGS = ("verified", "paper-only", "ours")
UNTAGGED = ("base", "system")
"""Sections that are no settings of training."""

_TAG = re.compile(rf"\s#\s({'|'.join(TAGS)})(?![\w-])")


def read_sources(file: Path) -> dict[str, str | None]:
    """The tag of every setting in `file` and in the files under it, by dotted name; None where there is none."""
    text = file.read_text()
    tags = [found and found[1] for found in map(_TAG.search, text.splitlines())]
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), file
    sections = {key.value: (key, value) for key, value in root.value}
    below = read_sources(file.parent / sections["base"][1].value) if "base" in sections else {}
    kept = [pair for name, pair in sections.items() if name not in UNTAGGED]
    return below | dict(_leaves(kept, "", None, tags))


def _leaves(
    pairs: list[tuple[yaml.Node, yaml.Node]], prefix: str, outer: str | None, tags: list[str | None]
) -> Iterator[tuple[str, str | None]]:
    """Names and tags of what holds no settings itself: a list, like an empty mapping, is one value."""
    for key, value in pairs:
        name, tag = prefix + key.value, tags[key.start_mark.line] or outer
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _leaves(value.value, f"{name}.", tag, tags)
        else:
            yield name, tag
