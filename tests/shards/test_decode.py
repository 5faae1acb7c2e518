"""Every kind of image becomes upright uint8 RGB; what cannot is a damaged sample."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from shards.decode import decode_image, image_size, resize


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    """A smooth image, 40 wide and 24 high."""
    y, x = np.mgrid[0:24, 0:40]
    return Image.fromarray(np.stack([x * 6, y * 10, x + y], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_jpeg_equals_pillow(photo: Image.Image, options: dict[str, Any]) -> None:
    content = encode(photo, "jpeg", quality=90, **options)
    pixels = decode_image(content, "jpg")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(content))))
    assert image_size(content) == (40, 24)


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "gif", "jpeg", "rotated"])
def test_a_view_decodes_as_its_bytes_do(photo: Image.Image, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(photo, "jpeg", exif=exif) if kind == "rotated" else encode(photo, kind)
    view = memoryview(b"." + content)[1:]
    assert image_size(view) == image_size(content)
    assert np.array_equal(decode_image(view, "jpg"), decode_image(content, "jpg"))
    assert (decode_image(view, "jpg").shape == (40, 24, 3)) == (kind == "rotated")


@pytest.mark.parametrize("kind", ["png", "webp", "bmp", "tiff", "gif"])
def test_other_kinds(photo: Image.Image, kind: str) -> None:
    flat = Image.new("RGB", (5, 3), (200, 40, 90))
    pixels = decode_image(encode(flat, kind, **({"lossless": True} if kind == "webp" else {})), kind)
    assert pixels.shape == (3, 5, 3)
    assert np.abs(pixels.astype(int) - (200, 40, 90)).max() <= 1


def test_transparency_is_laid_on_white() -> None:
    half = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert decode_image(encode(half, "png"), "png")[0, 0].tolist() == [255, 127, 127]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert decode_image(encode(palette, "png", transparency=0), "png")[0, 0].tolist() == [255, 255, 255]
    assert decode_image(encode(palette, "png"), "png")[0, 0].tolist() == [10, 20, 30]
    grey = Image.new("LA", (2, 2), (0, 0))
    assert decode_image(encode(grey, "png"), "png")[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_are_scaled() -> None:
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    pixels = decode_image(encode(Image.fromarray(values), "png"), "png")
    assert pixels[..., 0].tolist() == [[0, 100], [200, 255]]


def test_dark_sixteen_bits_stay_dark() -> None:
    values = np.full((2, 2), 200, dtype=np.uint16)
    assert decode_image(encode(Image.fromarray(values), "png"), "png").max() == 1


def test_grey_and_cmyk_jpeg(photo: Image.Image) -> None:
    grey = decode_image(encode(photo.convert("L"), "jpeg"), "jpg")
    assert grey.shape == (24, 40, 3)
    assert np.array_equal(grey[..., 0], grey[..., 2])
    content = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpeg")
    assert np.abs(decode_image(content, "jpg").astype(int) - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_exif_rotation_is_applied(photo: Image.Image, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode_image(encode(photo, kind, quality=95), kind)
    turned = decode_image(encode(photo, kind, exif=exif, quality=95), kind)
    assert np.array_equal(turned, np.rot90(upright, k=-1))


def test_wrong_extension_is_forgiven(photo: Image.Image) -> None:
    assert np.array_equal(decode_image(encode(photo, "png"), "jpg"), np.asarray(photo))
    assert decode_image(encode(photo, "jpeg"), "png").shape == (24, 40, 3)


@pytest.mark.parametrize("size", [16, 24, 80])
def test_resize_is_close_to_pillow(photo: Image.Image, size: int) -> None:
    resized = resize(np.asarray(photo), size)
    assert (resized.shape, resized.dtype) == ((3, size, size), torch.uint8)
    assert resized.stride()[0] == 1
    reference = np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(resized.permute(1, 2, 0).numpy().astype(int) - reference)
    # Measured: mean 0.12 when enlarging, less when reducing; both round their weights to fixed point.
    assert difference.mean() < 0.15
    assert difference.max() <= 2


def segment(code: int, content: bytes) -> bytes:
    return bytes([0xFF, code]) + (len(content) + 2).to_bytes(2) + content


@pytest.mark.parametrize("before", [b"", segment(0xFE, b"Exif\x00 in a comment"), segment(0xE2, bytes(5000)) * 3])
@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation_is_found_behind_other_segments(photo: Image.Image, before: bytes, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(photo, "jpeg", quality=95)
    turned = content[:2] + before + segment(0xE1, exif.tobytes()) + content[2:]
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(turned))))
    assert np.array_equal(decode_image(turned, "jpg"), expected)
    assert decode_image(turned, "jpg").shape == ((24, 40, 3) if orientation == 1 else (40, 24, 3))
    # Behind the pixels, or in a segment of another kind, it says nothing.
    plain = content[:2] + segment(0xFE, exif.tobytes()) + content[2:] + segment(0xE1, exif.tobytes())
    assert np.array_equal(decode_image(plain, "jpg"), decode_image(content, "jpg"))


def test_resize_reads_a_part_of_an_image(photo: Image.Image) -> None:
    pixels = np.asarray(photo)
    part = pixels[3:20, 5:31]
    assert torch.equal(resize(part, 16), resize(part.copy(), 16))
