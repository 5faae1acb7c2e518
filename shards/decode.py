"""Encoded image -> uint8 pixels.

JPEG goes through simplejpeg (pixel-identical to Pillow and faster), all else through Pillow. Transparent images are
laid on white, 16-bit is scaled to 8, CMYK is converted, and EXIF orientation is applied whatever the type.
Shapes: H height, W width, C = 3 channels, RGB.
"""

import io
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from shards.errors import DamagedSample

if TYPE_CHECKING:
    import torch

_EXIF_ORIENTATION = 0x0112
_JPEG = b"\xff\xd8"
_APP1, _START_OF_SCAN = b"\xe1", b"\xda"
_NO_LENGTH = {b"", b"\x00", b"\x01", b"\xff", *(bytes([code]) for code in range(0xD0, 0xDA))}
"""Second bytes that begin no segment with a length: padding, restarts, and what a sound header does not have."""
_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I", "F"}


def image_size(image: bytes) -> tuple[int, int]:
    """Width and height from the header, as stored. Raises DamagedSample where there is no readable header."""
    try:
        if image[:2] == _JPEG:
            height, width, *_ = simplejpeg.decode_jpeg_header(image)
            return width, height
        with Image.open(io.BytesIO(image)) as opened:
            return opened.size
    except Exception as error:
        raise DamagedSample(f"the image header cannot be read: {_reason(error)}") from error


def decode_image(image: bytes, extension: str) -> np.ndarray:
    """Decodes one image to pixels_HWC, uint8 RGB.

    Raises:
        DamagedSample: bytes that are no image of a known type, or end early.
    """
    try:
        if extension in {"jpg", "jpeg"} and not _needs_pillow(image):
            return simplejpeg.decode_jpeg(image, colorspace="RGB")
        with Image.open(io.BytesIO(image)) as opened:
            return np.array(_to_rgb(ImageOps.exif_transpose(opened)))
    except Exception as error:
        raise DamagedSample(f"the image cannot be decoded: {_reason(error)}") from error


def resize(pixels_HWC: np.ndarray, size: int) -> "torch.Tensor":
    """Bicubic, antialiased, to size x size (the aspect is not kept).

    Returns:
        uint8 tensor (3, size, size), channels_last in memory.
    """
    import torch  # Costs a second of start-up, which `shards build` need not pay.
    from torch.nn.functional import interpolate

    # Permuted behind the batch axis, it has the strides of channels_last, which torch takes and gives without a copy.
    pixels_1CHW = torch.from_numpy(np.require(pixels_HWC, requirements="W"))[None].permute(0, 3, 1, 2)
    return interpolate(pixels_1CHW, size=(size, size), mode="bicubic", antialias=True)[0]


def _needs_pillow(image: bytes) -> bool:
    """True for what simplejpeg does not turn into upright RGB: files that are no JPEG, CMYK, and EXIF rotation."""
    if image[:2] != _JPEG:
        return True
    if simplejpeg.decode_jpeg_header(image)[2] in {"CMYK", "YCCK"}:
        return True
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


def _is_rotated(image: bytes) -> bool:
    with Image.open(io.BytesIO(image)) as opened:
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
    values = np.asarray(opened, dtype=np.float64)
    scaled = values / 257 if opened.mode.startswith("I;16") or values.max(initial=0) > 255 else values
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    # Pillow names the address of the buffer, which would differ from run to run.
    return "unknown or damaged format" if "BytesIO object" in text else text or type(error).__name__
