"""Conceptual Captions 3M and 12M (Sharma et al., 2018; Changpinyo et al., 2021) with images that are already here.

    CAPTION<TAB>URL     the table, as `Train_GCC-training.tsv`; `cc12m.tsv` has the address first, which is read too

`shards.sources.url_map` says how rows find their images.
"""

from collections.abc import Iterator
from pathlib import Path

from shards.sources.annotation_files import URL_FIRST_LINE, URL_LINE, bad_entry, read_text_form
from shards.sources.url_map import UrlRow, UrlSource

_NEEDED = "a Conceptual Captions table: lines of CAPTION<TAB>URL or URL<TAB>CAPTION"


class ConceptualCaptionsSource(UrlSource):
    """The rows of one table whose image is here; `annotations` is the table, the rest as in `UrlSource`."""

    name = "conceptual-captions"

    def __init__(self, annotations: Path, images: Path, url_map: Path) -> None:
        super().__init__(conceptual_rows(Path(annotations)), images, url_map)


def conceptual_rows(path: Path) -> Iterator[UrlRow]:
    """Caption and address of each line. Raises UserError for a missing or different table."""
    for number, line in read_text_form(path, ConceptualCaptionsSource.name, _NEEDED):
        match = URL_LINE.fullmatch(line) or URL_FIRST_LINE.fullmatch(line)
        if not match:
            raise bad_entry(path, f"a line ({number})", _NEEDED)
        yield match["caption"], match["url"].strip()
