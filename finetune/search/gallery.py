"""What an index is made of: a folder of shards, or the images below a folder, with captions where there are any."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.errors import UserError
from shards.reader import ShardSet
from shards.sample import IMAGE_EXTENSIONS
from shards.sources.annotation_files import read_lines
from shards.sources.base import Source
from shards.sources.image_files import ImageFileSource, Record, image_folder, printable

Form = Literal["shards", "images"]


class PictureFolder(ImageFileSource):
    """The images below a folder in the order of their paths. A `.txt` beside one holds its captions, one per line.

    Unlike `shards build folder`, which makes training pairs, images without captions take part.

    Raises:
        UserError: a missing folder, or no images in it.
    """

    name = "images"

    def __init__(self, images: Path) -> None:
        folder = image_folder(images)
        found = (path for path in folder.rglob("*") if path.suffix[1:].lower() in IMAGE_EXTENSIONS and path.is_file())
        files = sorted(path.relative_to(folder).as_posix() for path in found)
        if not files:
            raise UserError(f"`images` (={images}) must hold images ({', '.join(sorted(IMAGE_EXTENSIONS))})")
        super().__init__(folder, [Record(file, _captions(folder / file), {}) for file in files], "the folder")


def _captions(image: Path) -> tuple[str, ...]:
    text = image.with_suffix(".txt")
    return tuple(printable(line.strip()) for _, line in read_lines(text)) if text.is_file() else ()


@dataclass(frozen=True)
class Gallery:
    """A source of pictures and where it lies."""

    form: Form
    path: Path
    source: Source


def open_gallery(shards: Path | None, images: Path | None) -> Gallery:
    """Opens either form.

    Raises:
        UserError: both or neither are given, or what is given cannot be opened or is empty.
    """
    if (shards is None) == (images is None):
        raise UserError(f"give either `--shards` or `--images`; {'both were' if shards else 'neither was'} given")
    if shards is not None:
        gallery = Gallery("shards", shards.resolve(), ShardSet(shards))
    else:
        assert images is not None
        gallery = Gallery("images", images.resolve(), PictureFolder(images))
    if not len(gallery.source):
        raise UserError(f"`{gallery.form}` (={shards or images}) holds no pictures")
    return gallery
