"""An uploaded picture, refused before it is decoded where it is too large or no picture at all."""

import io

from PIL import Image

from shards.errors import UserError
from shards.sample import Sample

MOST_BYTES, MOST_PIXELS = 10 << 20, 50_000_000
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


def uploaded_picture(content: bytes) -> Sample:
    """Looks at the header alone: a small file can claim pixels by the billion.

    Raises:
        UserError: another format, or more than `MOST_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=list(FORMATS)) as opened:
            extension, (width, height) = FORMATS[str(opened.format)], opened.size
    except Image.DecompressionBombError:
        raise UserError(f"the picture has more than {MOST_PIXELS:,} pixels") from None
    except Exception:  # Pillow raises whatever a damaged header leads it to
        raise UserError(f"the upload is no picture that can be read: {', '.join(FORMATS)}") from None
    if width * height > MOST_PIXELS:
        raise UserError(f"the picture has {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}")
    return Sample("upload", content, extension, ())
