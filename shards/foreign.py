"""What a sample is in a tar of another tool's making: an image, a caption in .txt or .json, metadata in .json."""

import json
import re
from collections.abc import Mapping
from typing import Any

from shards.manifest import Foreign
from shards.sample import Sample
from shards.soundness import unsound_caption


class UnsoundCaption(ValueError):
    """A caption that cannot stay; the message is one of `shards.soundness.UNSOUND`."""


def foreign_metadata(record: bytes) -> dict[str, Any] | None:
    """The object in a `.json` member; None where there is none."""
    try:
        values = json.loads(record)
    except (ValueError, RecursionError):  # Ten thousand brackets are small, and deeper than the parser goes.
        return None
    return values if isinstance(values, dict) else None


def foreign_captions(record: bytes | None, text: bytes | None, caption_field: str | None) -> tuple[str, ...]:
    """The captions of a sample, stripped, those without text left out.

    Raises:
        UnsoundCaption: bytes that are no text, or a caption that is too long; the message is the reason.
    """
    found: Any
    if caption_field is None and text is not None:
        found = text.decode("utf-8", "surrogateescape")
    else:
        found = (foreign_metadata(record or b"") or {}).get(caption_field or "caption")
    listed = found if isinstance(found, list) else [found]
    captions = tuple(caption.strip() for caption in listed if isinstance(caption, str) and caption.strip())
    if fault := next(filter(None, map(unsound_caption, captions)), ""):
        raise UnsoundCaption(fault)
    return captions


def foreign_sample(
    shard: str, ordinal: int, key: str, extension: str, members: Mapping[str, bytes], foreign: Foreign
) -> Sample:
    """One sample of a foreign tar. Its key is its place, since keys repeat; the tar's own is in the metadata.

    Raises:
        UnsoundCaption: as `foreign_captions`.
    """
    record = members.get("json")
    metadata = (foreign_metadata(record) if record else None) or {}
    captions = foreign_captions(record, members.get("txt"), foreign.caption_field)
    metadata.pop(foreign.caption_field or "caption", None)
    return Sample(
        key=f"{re.sub(r'[^0-9A-Za-z_-]+', '-', shard.removesuffix('.tar'))[:70]}-{ordinal:06d}",
        image=members["image"],
        extension=extension,
        captions=captions,
        metadata={**metadata, "key": key},
    )
