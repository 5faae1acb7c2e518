"""Encoded image -> uint8 pixels, in bounded memory whatever the bytes are.

JPEG goes through simplejpeg (pixel-identical to Pillow and faster), all else through Pillow. Transparent images are
laid on white, 16-bit is scaled to 8, CMYK is converted, and EXIF orientation is applied whatever the type. Of an
animation (GIF, WebP, APNG) the first frame alone is decoded. The type is told by the bytes, not by the name.
Shapes: H height, W width, C = 3 channels, RGB.
"""

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from shards.errors import DamagedSample
from shards.sample import Encoded, Sample

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 1 << 26
"""8192 x 8192: a larger image is refused by its header, before memory is taken for it. While it is decoded, an animated
WebP with transparency takes 29 bytes a pixel, a rotated JPEG 14, a plain one 3."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow knows many more, some of which run other programs."""
_EXIF_ORIENTATION = 0x0112
_JPEG = b"\xff\xd8"
_APP1, _START_OF_SCAN = b"\xe1", b"\xda"
_NO_LENGTH = {b"", b"\x00", b"\x01", b"\xff", *(bytes([code]) for code in range(0xD0, 0xDA))}
"""Second bytes that begin no segment with a length: padding, restarts, and what a sound header does not have."""
_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I", "F"}


warnings.filterwarnings("ignore", module=r"PIL\b")  # Thousands of lines about one file; what matters is raised.


class ImageTooLarge(DamagedSample):
    """The image has more pixels than the limit."""


def image_size(image: Encoded, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height from the header, as stored.

    Raises:
        DamagedSample: there is no readable header of a known type; ImageTooLarge: the limit.
    """
    image = bytes(image)
    try:
        if header := _jpeg_header(image):
            return _within(header[1], header[0], max_pixels)
        with open_image(image, max_pixels) as opened:
            return opened.size
    except ImageTooLarge:
        raise
    except Exception as error:
        raise DamagedSample(f"the image header cannot be read: {_reason(error, image)}") from error


def sample_size(sample: Sample) -> tuple[int, int]:
    """Width and height of the image that a sample is of, whether it holds the image or its regions alone."""
    if sample.extension:
        return image_size(sample.image)
    return int(sample.metadata["width"]), int(sample.metadata["height"])


def decode_image(image: Encoded, extension: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes one image to pixels_HWC, uint8 RGB.

    Raises:
        DamagedSample: bytes that are no image of a known type, or end early; ImageTooLarge: the limit.
    """
    image = bytes(image)
    try:
        if extension in {"jpg", "jpeg"} and not _needs_pillow(image, max_pixels):
            return simplejpeg.decode_jpeg(image, colorspace="RGB")
        with open_image(image, max_pixels) as opened:
            return np.array(_to_rgb(ImageOps.exif_transpose(opened)))
    except ImageTooLarge:
        raise
    except Exception as error:
        raise DamagedSample(f"the image cannot be decoded: {_reason(error, image)}") from error


def resize(pixels_HWC: np.ndarray, size: int | tuple[int, int]) -> "torch.Tensor":
    """Bicubic, antialiased, to a square of side `size` or to that height and width, whatever the aspect was.

    Returns:
        uint8 tensor (3, height, width), channels_last in memory.
    """
    import torch  # Costs a second of start-up, which `shards build` need not pay.
    from torch.nn.functional import interpolate

    # Permuted behind the batch axis, it has the strides of channels_last, which torch takes and gives without a copy.
    pixels_1CHW = torch.from_numpy(np.require(pixels_HWC, requirements="W"))[None].permute(0, 3, 1, 2)
    return interpolate(pixels_1CHW, size=size, mode="bicubic", antialias=True)[0]


def _needs_pillow(image: bytes, max_pixels: int) -> bool:
    """True for what simplejpeg does not turn into upright RGB: files that are no JPEG, CMYK, and EXIF rotation."""
    header = _jpeg_header(image)
    if header is None or header[2] in {"CMYK", "YCCK"}:
        return True
    _within(header[1], header[0], max_pixels)
    return _has_exif(image) and _is_rotated(image)


def _has_exif(image: bytes) -> bool:
    """Whether an Exif segment stands before the pixels of a JPEG; looking through all bytes would take 50 us."""
    at = 2
    while image[at : at + 1] == b"\xff" and (marker := image[at + 1 : at + 2]) not in _NO_LENGTH:
        if marker == _START_OF_SCAN:
            return False
        if marker == _APP1 and image[at + 4 : at + 9] == b"Exif\x00":
            return True
        at += 2 + int.from_bytes(image[at + 2 : at + 4])
    return b"Exif\x00" in image


def _jpeg_header(image: bytes) -> tuple[int, int, str, str] | None:
    """Height, width, colour space and subsampling; None for no JPEG, or one that simplejpeg cannot read and Pillow may:
    rare subsamplings."""
    if image[:2] != _JPEG:
        return None
    try:
        header: tuple[int, int, str, str] = simplejpeg.decode_jpeg_header(image)
    except (ValueError, KeyError):
        return None
    return header


def open_image(image: Encoded, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Pillow's image with its header read, not its pixels. Raises ImageTooLarge, and what Pillow raises."""
    image = bytes(image)
    if image[8:12] == b"WEBP":  # Its decoder takes memory for the canvas as soon as it is opened.
        _within(*_webp_size(image), max_pixels)
    try:
        opened = Image.open(io.BytesIO(image), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"the image has more than {max_pixels} pixels") from error
    _within(*opened.size, max_pixels)
    return opened


def _within(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    if width * height > max_pixels:
        raise ImageTooLarge(f"the image is {width}x{height}, more than {max_pixels} pixels")
    return width, height


def _webp_size(image: bytes) -> tuple[int, int]:
    """Width and height of the canvas, by the WebP container specification; 0, 0 where there is none to read."""
    kind, first = image[12:16], image[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return int.from_bytes(first[4:7], "little") + 1, int.from_bytes(first[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(first[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(first[6:8], "little") & 0x3FFF, int.from_bytes(first[8:10], "little") & 0x3FFF
    return 0, 0


def _is_rotated(image: bytes) -> bool:
    with Image.open(io.BytesIO(image), formats=_FORMATS) as opened:
        return opened.getexif().get(_EXIF_ORIENTATION, 1) != 1


def _to_rgb(opened: Image.Image) -> Image.Image:
    if opened.mode in _SIXTEEN_BIT:
        return _eight_bit(opened).convert("RGB")
    if opened.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in opened.info:
        rgba = opened.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return opened.convert("RGB")


def _eight_bit(opened: Image.Image) -> Image.Image:
    """Pillow clips to 8 bits where it should scale. Modes `I` and `F` do not tell their range, so their values do."""
    values = np.asarray(opened, dtype=np.float32)
    scaled = values / 257 if opened.mode.startswith("I;16") or values.max(initial=0) > 255 else values
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def _reason(error: Exception, image: bytes) -> str:
    if image[:1024].lstrip().startswith(b"<"):
        return "it is HTML, SVG or other markup"
    text = " ".join(str(error).split())
    # Pillow names the address of the buffer, which would differ from run to run.
    unknown = "unknown or damaged format" if image else "it has no bytes"
    return unknown if "BytesIO object" in text else text or type(error).__name__
