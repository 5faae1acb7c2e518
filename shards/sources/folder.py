"""Image folders of one's own: a text file beside each image, or one table for all.

    birds/owl.jpg + birds/owl.txt       one caption per line; folders may be nested
    table.csv, .tsv or .parquet         one row per caption, or a list of captions in a parquet column

Images are taken in the order of their paths, those of a table in the order of its rows; an image that repeats in a
table is one sample with all its captions. `file` is kept as metadata; other columns and other files are left out.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import UserError, nearest
from shards.sample import IMAGE_EXTENSIONS
from shards.sources.annotation_files import ESCAPED, FORMS, form_of, read_lines, require_file
from shards.sources.image_files import ImageFileSource, Record, captions_of, grouped, image_folder

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = {".csv": ",", ".tsv": "\t"}
LONGEST_FIELD = 1 << 26
"""Characters; the library's own limit would end a build at the first caption of 128 KiB."""


class FolderSource(ImageFileSource):
    """The images below a folder that have a `.txt` beside them. Images are read when asked for.

    Raises:
        UserError: a missing folder, no images, images without a text file, a text file without captions.
    """

    name = "folder"

    def __init__(self, images: Path) -> None:
        super().__init__(images, _beside(image_folder(images)))


class TableSource(ImageFileSource):
    """The images that a table names. Images are read when asked for.

    Args:
        table: CSV or TSV with a line of column names, or parquet.
        images: The folder that the image column starts from.

    Raises:
        UserError: a missing or different table, an unknown column, a row without image or caption, missing image files.
    """

    name = "table"

    def __init__(self, table: Path, images: Path, image_column: str = "image", caption_column: str = "caption") -> None:
        folder = image_folder(images)
        super().__init__(images, grouped(folder, _pairs(Path(table), image_column, caption_column)))


def _beside(images: Path) -> list[Record]:
    found = [path for path in images.rglob("*") if path.suffix[1:].lower() in IMAGE_EXTENSIONS and path.is_file()]
    files = sorted(path.relative_to(images).as_posix() for path in found)
    if not files:
        raise UserError(f"`images` (={images}) must hold images ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    lacking = [file for file in files if not _text_beside(images, file).is_file()]
    if lacking:
        raise UserError(
            f"`images` (={images}) lacks a .txt beside {len(lacking)} of {len(files)} images, the first is {lacking[0]}"
        )
    return [Record(file, captions_of(file, _text_lines(images, file)), {}) for file in files]


def _text_beside(images: Path, file: str) -> Path:
    return (images / file).with_suffix(".txt")


def _text_lines(images: Path, file: str) -> Iterator[str]:
    return (line for _, line in read_lines(_text_beside(images, file)))


def _pairs(path: Path, image_column: str, caption_column: str) -> Iterator[tuple[str, str]]:
    for number, (image, caption) in enumerate(table_rows(path, image_column, caption_column), 1):
        texts = caption if isinstance(caption, list) else [caption]
        if not isinstance(image, str) or not image or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"row {number} of `table` (={path}) must have text in `{image_column}` and `{caption_column}`"
            )
        yield from ((image, text) for text in texts)


def table_rows(path: Path, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The values of the columns, row by row; None where a row is too short."""
    require_file("table", path)
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path, columns)
    elif path.suffix.lower() in DELIMITERS:
        yield from _text_rows(path, columns)
    else:
        raise UserError(f"`table` (={path}) must end in .csv, .tsv or .parquet{_known_form(path)}")


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, columns, file.schema_arrow.names)
            for batch in file.iter_batches(columns=list(dict.fromkeys(columns))):
                yield from zip(*(_values(batch[column]) for column in columns), strict=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"`table` (={path}) cannot be read as parquet: {error}") from None


def _values(column: "pa.Array") -> list[Any]:
    """Texts are taken as bytes first: a parquet file does not promise that they are UTF-8."""
    import pyarrow as pa

    binary = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    if column.type in binary:
        contents = column.cast(binary[column.type]).to_pylist()
        return [None if content is None else content.decode("utf-8", ESCAPED) for content in contents]
    if pa.types.is_list(column.type) and column.type.value_type in binary:
        places = [None if size is None else range(size) for size in column.value_lengths().to_pylist()]
        flat = iter(_values(column.flatten()))
        return [None if place is None else [next(flat) for _ in place] for place in places]
    return column.to_pylist()


def _text_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Strict, since a lone quotation mark would else take the rows after it for its caption."""
    try:
        csv.field_size_limit(LONGEST_FIELD)
        with path.open(encoding="utf-8-sig", errors=ESCAPED, newline="") as file:
            rows = csv.DictReader(file, delimiter=DELIMITERS[path.suffix.lower()], strict=True)
            _check_columns(path, columns, list(rows.fieldnames or []))
            for row in rows:
                if None in row:
                    raise UserError(f"line {rows.line_num} of `table` (={path}) must not have more fields than line 1")
                yield tuple(row[column] for column in columns)
    except csv.Error as error:
        raise UserError(f"`table` (={path}) cannot be read after line {rows.line_num}: {error}") from None


def _check_columns(path: Path, columns: tuple[str, ...], known: list[str]) -> None:
    for column in columns:
        if column not in known:
            raise UserError(
                f"`table` (={path}) lacks the column `{column}`{nearest(column, known)}; "
                f"its columns are {', '.join(known)}{_known_form(path)}"
            )


def _known_form(path: Path) -> str:
    """What else the file may be, as the end of a sentence."""
    form = form_of(path)
    return f"; it looks like {FORMS[form]}, which `shards build {form}` reads" if form and form != "folder" else ""
