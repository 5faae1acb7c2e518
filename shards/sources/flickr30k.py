"""Flickr30K as its authors give it, `results_20130124.token` (Young et al., 2014); Flickr8K's file has the same form.

    1000092795.jpg#0<TAB>Two young guys with shaggy hair look at their hands while hanging out in the yard .

The captions of an image are one sample, in the order of the file; their number may differ between images. The file
knows no splits: for those of the retrieval benchmark use the Karpathy form. `file` is kept as metadata.
"""

from collections.abc import Iterator
from pathlib import Path

from shards.errors import UserError
from shards.sources.annotation_files import TOKEN_LINE, bad_entry, read_text_form
from shards.sources.image_files import ImageFileSource, grouped, image_folder

_NEEDED = "a Flickr30K token file: lines of NAME.jpg#NUMBER<TAB>CAPTION"


class Flickr30kSource(ImageFileSource):
    """The images of one token file. Images are read when asked for.

    Args:
        annotations: The token file.
        images: The folder of the image files, such as `flickr30k-images`.

    Raises:
        UserError: a missing or different annotation file, a caption number given twice, an image without captions,
            missing image files.
    """

    name = "flickr30k"

    def __init__(self, annotations: Path, images: Path) -> None:
        image_folder(images)
        super().__init__(images, grouped(Path(images), _pairs(Path(annotations))))


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    seen = set()
    for number, line in read_text_form(path, Flickr30kSource.name, _NEEDED):
        match = TOKEN_LINE.fullmatch(line)
        if not match:
            raise bad_entry(path, f"a line ({number})", _NEEDED)
        name, place = match["name"], match["number"]
        if (name, place) in seen:
            raise UserError(f"`annotations` (={path}) must give {name}#{place} once, but line {number} does again")
        seen.add((name, place))
        yield name, match["caption"]
