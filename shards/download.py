"""Lists of addresses -> images, by the tool img2dataset, then indexed where it put them.

    CC3M table | SBU JSON | CSV, TSV, parquet -> urls.parquet -> img2dataset -> OUT/*.tar -> shards manifest

img2dataset needs other versions of libraries than the tests of this project, so it is started as a program, from this
environment (`pip install 'duostream[img2dataset]'`) or its own (`pipx install img2dataset`). It honours the
`X-Robots-Tag` of sites, goes on where it was stopped when started again, and keeps the bytes of the images unless told
to resize them.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import Stopped, UserError
from shards.manifest import MANIFEST
from shards.sources.annotation_files import form_of, require_file
from shards.sources.conceptual_captions import conceptual_rows
from shards.sources.folder import table_rows
from shards.sources.sbu import sbu_rows
from shards.sources.url_map import UrlRow
from shards.storage import replace_atomically
from shards.webdataset import ManifestResult, check_unindexed, write_manifest

PROGRAM = "img2dataset"
LIST = "urls.parquet"
_ROWS_AT_A_TIME = 100_000


def download(
    urls: Path,
    out: Path,
    *,
    url_column: str = "url",
    caption_column: str = "caption",
    samples_per_shard: int = 10_000,
    workers: int = 1,
    program: str = PROGRAM,
    options: Iterable[str] = (),
) -> ManifestResult:
    """Fetches the images of a list into WebDataset tars under `out`, and indexes them.

    Args:
        urls: A Conceptual Captions table, SBU JSON, or CSV, TSV or parquet with named columns.
        workers: Processes that fetch, each with 32 threads.
        options: For img2dataset, over those given here. With `--resize_mode` among them it decodes and encodes anew.

    Raises:
        UserError: no such list or program; nothing that could be fetched.
        Stopped: img2dataset failed.
    """
    found = shutil.which(program)
    if not found:
        advice = "pip install 'duostream[img2dataset]', or pipx install img2dataset"
        raise UserError(f"`program` (={program}) must be the program img2dataset: {advice}")
    rows = url_rows(urls, url_column, caption_column)
    first = list(islice(rows, 1))
    if not first:
        raise UserError(f"`urls` (={urls}) must hold at least one address")
    _make_folder(out)
    check_unindexed(out, overwrite=True)
    (out / MANIFEST).unlink(missing_ok=True)  # Of what is about to change; img2dataset would fall over it as well.
    _write_list(out / LIST, (row for part in (first, rows) for row in part))
    options = list(options)
    command = [found, "--url_list", str(out / LIST), "--output_folder", str(out), *_OPTIONS]
    command += [] if "--resize_mode" in options else _AS_THEY_ARE
    command += ["--number_sample_per_shard", str(samples_per_shard), "--processes_count", str(workers), *options]
    quiet = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    status = subprocess.run(command, env={**os.environ, **quiet}, stdout=sys.stderr).returncode
    if status:
        raise Stopped(f"img2dataset ended with status {status}; the same command goes on with what it has")
    return write_manifest(out, overwrite=True)


_OPTIONS = [
    *("--input_format", "parquet", "--url_col", "url", "--caption_col", "caption"),
    *("--output_format", "webdataset", "--compute_hash", "sha256", "--thread_count", "32", "--enable_wandb", "False"),
]
_AS_THEY_ARE = ["--resize_mode", "no", "--disable_all_reencoding", "True"]
"""Images keep their bytes; what is no image is found by the index, not by img2dataset."""


def url_rows(path: Path, url_column: str, caption_column: str) -> Iterator[UrlRow]:
    """Caption and address of each row, whichever form the list has. Raises UserError for other files."""
    require_file("urls", path)
    if path.suffix.lower() == ".json":
        yield from sbu_rows(path)
    elif form_of(path) == "conceptual-captions":
        yield from conceptual_rows(path)
    else:
        for number, (url, caption) in enumerate(table_rows(path, url_column, caption_column), 1):
            if not isinstance(url, str) or not isinstance(caption, str):
                raise UserError(f"row {number} of `urls` (={path}) must have `{url_column}` and `{caption_column}`")
            yield caption, url


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"`out` (={out}) cannot be made: {(error.strerror or str(error)).lower()}") from None


def _write_list(path: Path, rows: Iterator[UrlRow]) -> None:
    schema = pa.schema([("caption", pa.string()), ("url", pa.string())])
    with replace_atomically(path) as file, pq.ParquetWriter(file, schema) as writer:
        while part := list(islice(rows, _ROWS_AT_A_TIME)):
            captions, urls = zip(*part, strict=True)
            writer.write_table(pa.table({"caption": list(captions), "url": list(urls)}, schema=schema))
