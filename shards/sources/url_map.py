"""Corpora that are lists of caption and address: joining the addresses to images that are already here.

    URL<TAB>FILE        the map of addresses to files below the image folder, or JSON {URL: FILE}

Nothing is fetched. Many addresses are dead, so rows without a local image are skipped and counted. Addresses that lead
to one file are one sample with all their captions; `url` (the first of them) and `file` are kept as metadata.
"""

from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

from shards.errors import UserError
from shards.sources.annotation_files import read_json, read_lines, require_file
from shards.sources.image_files import ImageFileSource, Record, captions_of, file_below, file_sizes, image_folder

_NEEDED = "lines of URL<TAB>FILE or JSON {URL: FILE}"

UrlRow = tuple[str, str]
"""Caption and address."""


class UrlSource(ImageFileSource):
    """The rows whose image the map names and the folder holds. Images are read when asked for.

    Args:
        rows: Caption and address of every row.
        images: The folder that the files of the map start from.
        url_map: Address to file, `.json` or lines.

    Attributes:
        skipped: Rows without a local image.

    Raises:
        UserError: a missing or different map, no row with a local image, an image without captions.
    """

    def __init__(self, rows: Iterable[UrlRow], images: Path, url_map: Path) -> None:
        folder = image_folder(images)
        waiting = iter(rows)
        first = list(islice(waiting, 1))  # A table of another form is refused before the map, which may be large.
        files = _read_map(Path(url_map), folder)
        total, named = 0, []
        for caption, url in chain(first, waiting):  # Those that the map lacks, most of a large table, are not held.
            total += 1
            if url in files:
                named.append((caption, url, files[url]))
        sizes = file_sizes(folder, [file for _, _, file in named])
        local = [row for row, size in zip(named, sizes, strict=True) if size is not None]
        self.skipped = total - len(local)
        if not local:
            raise UserError(f"`map` (={url_map}) must lead to an image below `images` for some of {total} rows")
        super().__init__(images, _records(local))


def _read_map(path: Path, images: Path) -> dict[str, str]:
    """File below `images` by address."""
    if path.suffix.lower() == ".json":
        content = read_json(path, "map")
        if not isinstance(content, dict) or not all(isinstance(file, str) for file in content.values()):
            raise UserError(f"`map` (={path}) has an unknown form; this needs {_NEEDED}")
        return {url: file_below(images, file) for url, file in content.items()}
    require_file("map", path)
    files: dict[str, str] = {}
    for number, line in read_lines(path):
        url, tab, file = line.partition("\t")
        if not tab or "\t" in file or not file.strip():
            raise UserError(f"`map` (={path}) has a line ({number}) of another form; this needs {_NEEDED}")
        file = file_below(images, file.strip())
        if files.setdefault(url.strip(), file) != file:
            raise UserError(f"`map` (={path}) must give an address one file, but line {number} gives another")
    return files


def _records(rows: list[tuple[str, str, str]]) -> list[Record]:
    captions: dict[str, list[str]] = {}
    urls: dict[str, str] = {}
    for caption, url, file in rows:
        captions.setdefault(file, []).append(caption)
        urls.setdefault(file, url)
    return [Record(file, captions_of(file, captions[file]), {"url": urls[file]}) for file in captions]
