"""Duplicates: images with the same bytes, and images that look the same.

The difference hash (Krawetz, 2013) compares neighbouring pixels of a small grey copy; here along rows and along
columns, 64 bits each. Everything is integers, so that every machine finds the same duplicates. N samples.
"""

import hashlib
from collections import defaultdict

import numpy as np
from PIL import Image

from shards.decode import open_image
from shards.sample import Encoded

Signature = tuple[int, int]
"""128 bits as two unsigned 64-bit numbers."""

_SIDE = 8
_FLAT = 16
"""Grey levels; below this range the signs of differences are noise, and such images are not compared."""


def exact_signature(image: Encoded) -> Signature:
    """128 bits of the sha256 of the encoded image."""
    digest = hashlib.sha256(image).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def near_signature(image: Encoded) -> Signature | None:
    """The difference hash; None for images that are nearly of one grey, or cannot be decoded."""
    try:
        with open_image(image) as opened:
            opened.draft("L", (4 * _SIDE, 4 * _SIDE))
            grey = _on_white(opened).resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX)
    except Exception:  # `decodable` is the filter for this.
        return None
    pixels = np.asarray(grey, dtype=np.int16)
    if int(pixels.max()) - int(pixels.min()) < _FLAT:
        return None
    across = pixels[:_SIDE, 1:] > pixels[:_SIDE, :-1]
    down = pixels[1:, :_SIDE] > pixels[:-1, :_SIDE]
    rows, columns = (int.from_bytes(np.packbits(bits).tobytes(), "big") for bits in (across, down))
    return rows, columns


def _on_white(opened: Image.Image) -> Image.Image:
    if "A" not in opened.getbands() and "transparency" not in opened.info:
        return opened.convert("L")
    rgba = opened.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("L")


def repeated(signatures_N2: np.ndarray) -> np.ndarray:
    """bool_N: True for each row that equals an earlier one. signatures_N2 is uint64."""
    _, first = np.unique(signatures_N2, axis=0, return_index=True)
    result_N = np.ones(len(signatures_N2), dtype=bool)
    result_N[first] = False
    return result_N


def near_repeated(signatures_N2: np.ndarray, distance: int) -> np.ndarray:
    """bool_N: True for each row within `distance` bits of an earlier row that is False itself. signatures_N2 is uint64.

    128 bits cut into `distance` + 1 bands: rows so near share at least one band whole (the pigeonhole principle), so
    only rows with an equal band are compared.
    """
    bands = _bands(signatures_N2, distance + 1)
    kept: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in bands]
    result_N = np.zeros(len(signatures_N2), dtype=bool)
    for i in range(len(signatures_N2)):
        values = [int(band[i]) for band in bands]
        candidates = sorted({j for band, value in zip(kept, values, strict=True) for j in band[value]})
        if candidates:
            differing = np.bitwise_count(signatures_N2[candidates] ^ signatures_N2[i]).sum(axis=1)
            if (differing <= distance).any():
                result_N[i] = True
                continue
        for band, value in zip(kept, values, strict=True):
            band[value].append(i)
    return result_N


def _bands(signatures_N2: np.ndarray, count: int) -> list[np.ndarray]:
    """The bits of each row in `count` groups of nearly equal size, each group a number (a hash where over 64 bits)."""
    bits_NB = np.unpackbits(np.ascontiguousarray(signatures_N2).view(np.uint8).reshape(-1, 16), axis=1)
    return [_packed(group) for group in np.array_split(bits_NB, count, axis=1)]


def _packed(bits_NB: np.ndarray) -> np.ndarray:
    """Each row of up to 128 bits as one uint64; wider rows are folded, which only adds candidates."""
    bytes_NB = np.packbits(bits_NB, axis=1)
    padded = np.pad(bytes_NB, ((0, 0), (0, -bytes_NB.shape[1] % 8)))
    words = np.ascontiguousarray(padded).view(np.uint64)
    return np.bitwise_xor.reduce(words, axis=1)
