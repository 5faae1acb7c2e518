"""Pictures that are to a decoder what photos are, for the benchmarks of this folder; the same bytes for every arm.

A photo is 1/f noise (the mean spectrum of natural images: Field, 1987), coloured weakly, with a scene of
`shards.sources` pasted over it for hard edges. Sizes are COCO's and Flickr30K's usual ones, JPEG has quality 90 and
4:2:0; that makes about half a byte per pixel, as COCO has. Shapes: H height, W width, C = 3 channels.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import simplejpeg

from shards.decode import decode_image
from shards.sample import Identity, Sample
from shards.sources.scenes import ScenesSource

SIZES = ((480, 640), (427, 640), (640, 480), (375, 500), (500, 375), (333, 500))
QUALITY = 90
FIELD = 2048


class Held:
    """A source whose samples are in memory."""

    name = "held"

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def identity(self, index: int) -> Identity:
        return Identity("held", index)

    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(hashlib.sha256(sample.image).digest() for sample in self.samples)).hexdigest()


def photos(count: int, seed: int = 0) -> Held:
    """`count` different photos with a caption each."""
    rng = np.random.default_rng(seed)
    field_FFC = _noise(FIELD, rng)
    scenes = ScenesSource(32, seed, "train", 192)
    stickers = [
        (decode_image(scene.image, scene.extension), scene.captions[0]) for scene in map(scenes.__getitem__, range(32))
    ]
    return Held([_photo(index, field_FFC, stickers, rng) for index in range(count)])


def describe(held: Held) -> str:
    """How large the files are."""
    sizes = [len(sample.image) for sample in held.samples]
    share = np.mean(
        [len(sample.image) / np.prod(SIZES[index % len(SIZES)]) for index, sample in enumerate(held.samples)]
    )
    return (
        f"{len(sizes)} photos, 500x333 to 640x480, JPEG quality {QUALITY} 4:2:0, "
        f"{np.mean(sizes) / 1000:.0f} kB on average ({share:.2f} bytes per pixel)"
    )


def _photo(
    index: int, field_FFC: np.ndarray, stickers: list[tuple[np.ndarray, str]], rng: np.random.Generator
) -> Sample:
    height, width = SIZES[index % len(SIZES)]
    top, left = rng.integers(FIELD - height), rng.integers(FIELD - width)
    canvas_HWC = field_FFC[top : top + height, left : left + width]
    canvas_HWC = canvas_HWC[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])].copy()
    sticker_SSC, caption = stickers[rng.integers(len(stickers))]
    side = len(sticker_SSC)
    top, left = rng.integers(height - side), rng.integers(width - side)
    canvas_HWC[top : top + side, left : left + side] = sticker_SSC
    image = simplejpeg.encode_jpeg(canvas_HWC, quality=QUALITY, colorsubsampling="420")
    return Sample(f"{index:06d}", image, "jpg", (caption,))


def _noise(size: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [size, size, 3], amplitudes falling with the frequency; the channels have most of it in common."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    grey = rng.standard_normal((size, size))
    channels = []
    for _ in range(3):
        spectrum = np.fft.rfft2(0.8 * grey + 0.35 * rng.standard_normal((size, size))) / frequency**1.1
        values = np.fft.irfft2(spectrum, (size, size))
        channels.append(120 + 45 * values / values.std())
    return np.stack(channels, axis=2).clip(0, 255).astype(np.uint8)
