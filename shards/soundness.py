"""What may be a sample at all, whatever filters are asked for: limits on its parts, and the reason for what is outside.

    unreadable          its source cannot give it
    image_unreadable    no header of a known image type: nothing, HTML, SVG, an early end
    image_too_large     more than MAX_PIXELS pixels (`shards.decode`) or IMAGE_BYTES bytes
    no_caption          no caption
    caption_unreadable  bytes that are not UTF-8, half a surrogate pair, or a NUL
    caption_too_long    more than CAPTION_BYTES
    record_unreadable   half a surrogate pair in metadata, tags or names of regions
    record_too_large    more than RECORD_BYTES of JSON, or ARRAY_BYTES of an array
    regions_unreadable  arrays that do not fit the regions, of another type than float16 and float32, or not finite

Other control characters are text. Bytes that are not UTF-8 come from annotation files as surrogate escapes, so that one
rule finds them and half pairs that JSON names.
"""

from shards.decode import ImageTooLarge, image_size
from shards.errors import DamagedSample
from shards.sample import ARRAYS, IMAGE_EXTENSIONS, Encoded, Sample, array_fault, record_json

UNSOUND = (
    *("unreadable", "image_unreadable", "image_too_large", "no_caption", "caption_unreadable", "caption_too_long"),
    *("record_unreadable", "record_too_large", "regions_unreadable"),
)
IMAGE_BYTES = 1 << 27
CAPTION_BYTES = 1 << 16
RECORD_BYTES = 1 << 22
ARRAY_BYTES = 1 << 27
MEMBER_BYTES = {"image": IMAGE_BYTES, "json": RECORD_BYTES, "txt": RECORD_BYTES} | dict.fromkeys(ARRAYS, ARRAY_BYTES)
"""A larger member of a tar is not read at all."""


def unsound_caption(caption: str) -> str:
    """The reason why a caption cannot stay, or an empty string."""
    if len(caption) > CAPTION_BYTES:  # Before a copy of it is made.
        return "caption_too_long"
    try:
        size = len(caption.encode())
    except UnicodeEncodeError:
        return "caption_unreadable"
    if "\0" in caption:
        return "caption_unreadable"
    return "caption_too_long" if size > CAPTION_BYTES else ""


def unsound_image(image: Encoded, extension: str) -> str:
    """The same for an encoded image; its pixels are not looked at."""
    if len(image) > IMAGE_BYTES:
        return "image_too_large"
    try:
        image_size(image)
    except ImageTooLarge:
        return "image_too_large"
    except DamagedSample:
        return "image_unreadable"
    return "" if extension in IMAGE_EXTENSIONS else "image_unreadable"


def unsound_picture(sample: Sample) -> str:
    """The same for what a sample holds of its image: the file, or features of regions and the image's size."""
    if sample.extension or sample.image:
        return unsound_image(sample.image, sample.extension)
    sized = all(isinstance(sample.metadata.get(side), int) for side in ("width", "height"))
    return "" if sized and sample.region_features is not None else "image_unreadable"


def unsound_record(sample: Sample) -> str:
    """The same for what is neither image nor caption."""
    try:
        record = record_json(sample)
    except (UnicodeEncodeError, RecursionError):
        return "record_unreadable"
    arrays = sample.arrays().values()
    if len(record) > RECORD_BYTES or any(array.nbytes > ARRAY_BYTES for array in arrays):
        return "record_too_large"
    faults = (array_fault(array, len(sample.regions)) for array in arrays)
    return "regions_unreadable" if any(faults) else ""
