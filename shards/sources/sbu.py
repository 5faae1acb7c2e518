"""SBU Captioned Photos (Ordonez et al., 2011) with images that are already here. Two published forms:

    sbu-captions-all.json                       {"image_urls": [...], "captions": [...], "user_ids": [...]}
    SBU_captioned_photo_dataset_urls.txt        an address in each line; the captions are the lines of the file beside
                                                it with `captions` in place of `urls` in its name

`shards.sources.url_map` says how rows find their images.
"""

from collections.abc import Iterator
from pathlib import Path

from shards.errors import UserError
from shards.sources.annotation_files import ESCAPED, read_json, require_file
from shards.sources.url_map import UrlRow, UrlSource

_NEEDED = 'JSON {"image_urls": [...], "captions": [...]}, or a text file of addresses beside one of captions'


class SbuSource(UrlSource):
    """The rows whose image is here; `annotations` is the JSON or the file of addresses, the rest as in `UrlSource`."""

    name = "sbu"

    def __init__(self, annotations: Path, images: Path, url_map: Path) -> None:
        super().__init__(sbu_rows(Path(annotations)), images, url_map)


def sbu_rows(path: Path) -> Iterator[UrlRow]:
    """Caption and address of each photo. Raises UserError for missing or different files."""
    urls, captions = _json_columns(path) if path.suffix.lower() == ".json" else _text_columns(path)
    if len(urls) != len(captions):
        raise UserError(f"`annotations` (={path}) must have a caption for each of {len(urls)} addresses")
    yield from ((caption.strip(), url.strip()) for caption, url in zip(captions, urls, strict=True))


def _json_columns(path: Path) -> tuple[list[str], list[str]]:
    content = read_json(path)
    columns = [content.get(name) if isinstance(content, dict) else None for name in ("image_urls", "captions")]
    if not all(isinstance(column, list) and all(isinstance(text, str) for text in column) for column in columns):
        raise UserError(f"`annotations` (={path}) has an unknown form; this needs {_NEEDED}")
    urls, captions = columns
    return urls or [], captions or []


def _text_columns(path: Path) -> tuple[list[str], list[str]]:
    require_file("annotations", path)
    beside = path.with_name(path.name.replace("urls", "captions"))
    if beside == path or not beside.is_file():
        raise UserError(f"`annotations` (={path}) needs the captions beside it; this needs {_NEEDED}")
    return _lines(path), _lines(beside)


def _lines(path: Path) -> list[str]:
    """All lines, blank ones too: line n of one file belongs to line n of the other."""
    return path.read_text(encoding="utf-8", errors=ESCAPED).removesuffix("\n").split("\n")
