"""Conceptual Captions 3M and 12M (Sharma et al., 2018; Changpinyo et al., 2021) with images that are already here.

    CAPTION<TAB>URL     the table, as `Train_GCC-training.tsv`; `cc12m.tsv` has the address first, which is read too
    URL<TAB>FILE        the map of addresses to files below the image folder, or JSON {URL: FILE}

Nothing is fetched. Many addresses are dead, so rows without a local image are skipped and counted. Addresses that lead
to one file are one sample with all their captions; `url` (the first of them) and `file` are kept as metadata.
"""

from collections.abc import Iterator
from pathlib import Path

from shards.errors import UserError
from shards.sources.annotation_files import (
    URL_FIRST_LINE,
    URL_LINE,
    bad_entry,
    read_json,
    read_lines,
    read_text_form,
    require_file,
)
from shards.sources.image_files import ImageFileSource, Record, captions_of, file_below, file_sizes, image_folder

_NEEDED = "a Conceptual Captions table: lines of CAPTION<TAB>URL or URL<TAB>CAPTION"
_NEEDED_MAP = "lines of URL<TAB>FILE or JSON {URL: FILE}"

Row = tuple[str, str, str]
"""Caption, address, file."""


class ConceptualCaptionsSource(ImageFileSource):
    """The rows of one table whose image the map names and the folder holds. Images are read when asked for.

    Args:
        annotations: The table.
        images: The folder that the files of the map start from.
        url_map: Address to file, `.json` or lines.

    Attributes:
        skipped: Rows without a local image.

    Raises:
        UserError: a missing or different table or map, no row with a local image, an image without captions.
    """

    name = "conceptual-captions"

    def __init__(self, annotations: Path, images: Path, url_map: Path) -> None:
        folder = image_folder(images)
        lines = read_text_form(Path(annotations), self.name, _NEEDED)
        files = _read_map(Path(url_map), folder)
        total, named = _named_rows(Path(annotations), lines, files)
        local = _local_rows(named, folder)
        self.skipped = total - len(local)
        if not local:
            raise UserError(f"`map` (={url_map}) must lead to an image below `images` for some of {total} rows")
        super().__init__(images, _records(local))


def _named_rows(path: Path, lines: Iterator[tuple[int, str]], files: dict[str, str]) -> tuple[int, list[Row]]:
    """The number of all rows, and those that the map gives a file. The others, most of a large table, are not held."""
    total, named = 0, []
    for number, line in lines:
        match = URL_LINE.fullmatch(line) or URL_FIRST_LINE.fullmatch(line)
        if not match:
            raise bad_entry(path, f"a line ({number})", _NEEDED)
        total += 1
        url = match["url"].strip()
        if url in files:
            named.append((match["caption"], url, files[url]))
    return total, named


def _read_map(path: Path, images: Path) -> dict[str, str]:
    """File below `images` by address."""
    if path.suffix.lower() == ".json":
        content = read_json(path, "map")
        if not isinstance(content, dict) or not all(isinstance(file, str) for file in content.values()):
            raise UserError(f"`map` (={path}) has an unknown form; this needs {_NEEDED_MAP}")
        return {url: file_below(images, file) for url, file in content.items()}
    require_file("map", path)
    files: dict[str, str] = {}
    for number, line in read_lines("map", path):
        url, tab, file = line.partition("\t")
        if not tab or "\t" in file or not file.strip():
            raise UserError(f"`map` (={path}) has a line ({number}) of another form; this needs {_NEEDED_MAP}")
        file = file_below(images, file.strip())
        if files.setdefault(url.strip(), file) != file:
            raise UserError(f"`map` (={path}) must give an address one file, but line {number} gives another")
    return files


def _local_rows(rows: list[Row], images: Path) -> list[Row]:
    sizes = file_sizes(images, [file for _, _, file in rows])
    return [row for row, size in zip(rows, sizes, strict=True) if size is not None]


def _records(rows: list[Row]) -> list[Record]:
    captions: dict[str, list[str]] = {}
    urls: dict[str, str] = {}
    for caption, url, file in rows:
        captions.setdefault(file, []).append(caption)
        urls.setdefault(file, url)
    return [Record(file, captions_of(file, captions[file]), {"url": urls[file]}) for file in captions]
