"""Small JPEGs of stored images, for pages."""

import io

import numpy as np
from PIL import Image

from shards.decode import decode_image
from shards.sample import Sample

QUALITY = 82


def thumbnail(sample: Sample, side: int) -> bytes:
    """A JPEG whose longer side is at most `side` pixels, about 4 KB at 128.

    Raises:
        DamagedSample: the image cannot be decoded.
    """
    picture = Image.fromarray(np.asarray(decode_image(sample.image, sample.extension)))
    picture.thumbnail((side, side))
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=QUALITY)
    return target.getvalue()
