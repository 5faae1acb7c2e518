"""Images of every odd and hostile kind: bounded memory, measured in a process that the kernel holds to it, and a
sentence for what cannot be decoded."""

import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from shards.decode import MAX_PIXELS, ImageTooLarge, decode_image, image_size
from shards.errors import DamagedSample
from tests.shards.bounded import run_bounded
from tests.shards.hostile import BOMBS, encode, gif_claiming, swollen

DECODE_ALL = """
import json, sys
from pathlib import Path
from shards.decode import decode_image, image_size
from shards.errors import DamagedSample

def said(function, *arguments):
    try:
        return str(function(*arguments))
    except DamagedSample as error:
        return f"{type(error).__name__}: {error}"

files = sorted(Path(sys.argv[1]).iterdir())
for file in files[:1] * 2:  # What is imported late is imported now.
    said(decode_image, file.read_bytes(), "png")
bound(int(sys.argv[2]))
before = status("VmHWM")
for file in files:
    image = file.read_bytes()
    size, pixels = said(image_size, image), said(lambda: decode_image(image, "jpg").shape)
    print(json.dumps([file.name, size, pixels, status("VmHWM") - before]))
"""


def decode_bounded(images: dict[str, bytes], folder: Path, extra: int) -> dict[str, list[Any]]:
    """Name -> what `image_size` says, what `decode_image` says, growth of the peak memory so far in bytes."""
    for name, image in images.items():
        (folder / name).write_bytes(image)
    lines = run_bounded(DECODE_ALL, str(folder), str(extra)).splitlines()
    return {name: rest for name, *rest in map(json.loads, lines)}


def test_bombs_are_refused_by_their_headers(tmp_path: Path) -> None:
    """They claim up to 12 GiB."""
    found = decode_bounded(BOMBS, tmp_path, 32 << 20)
    assert found.keys() == BOMBS.keys()
    sentence = re.compile(rf"ImageTooLarge: the image (is \d+x\d+,|has) more than {MAX_PIXELS} pixels")
    for name, (size, pixels, growth) in found.items():
        assert sentence.fullmatch(size), (name, size)
        assert pixels == size, name
        assert growth < 16 << 20, name


def test_what_swells_inside_an_image_is_bounded(tmp_path: Path) -> None:
    """Each unpacks to 128 MiB or more: profiles and texts are refused, tags that share bytes are passed over."""
    found = decode_bounded(swollen(), tmp_path, 160 << 20)
    for name in ("profile", "compressed text", "international text"):
        assert found[name][0] == (
            "DamagedSample: the image header cannot be read: Decompressed data too large for "
            "PngImagePlugin.MAX_TEXT_CHUNK"
        )
    assert "Too much memory used in text chunks" in found["many texts"][1]
    for name in ("rows", "tags of a jpeg", "tags of a png"):
        assert found[name][:2] == ["(8, 8)", "(8, 8, 3)"], name
    assert found["tags of a tiff"][1].startswith("DamagedSample: the image cannot be decoded: ")
    assert max(growth for *_, growth in found.values()) < 128 << 20  # Texts, up to their limit.


@pytest.mark.parametrize(
    ("kind", "per_pixel"), [("jpeg", 3), ("rotated jpeg", 14), ("cmyk", 14), ("rgba", 20), ("16 bit", 20), ("webp", 28)]
)
def test_memory_per_pixel(kind: str, per_pixel: int, tmp_path: Path) -> None:
    """What MAX_PIXELS promises, beside 32 MiB for what does not grow."""
    size, exif = (2048, 2048), Image.Exif()
    exif[0x0112] = 6
    images = {
        "jpeg": lambda: encode(Image.new("RGB", size, "red"), "jpeg"),
        "rotated jpeg": lambda: encode(Image.new("RGB", size, "red"), "jpeg", exif=exif),
        "cmyk": lambda: encode(Image.new("CMYK", size, (1, 2, 3, 4)), "jpeg"),
        "rgba": lambda: encode(Image.new("RGBA", size, (1, 2, 3, 4)), "png"),
        "16 bit": lambda: encode(Image.fromarray(np.full(size, 999, np.uint16)), "png"),
        "webp": lambda: encode(
            Image.new("RGBA", size, (1, 2, 3, 4)), "webp", save_all=True, append_images=[Image.new("RGBA", size)]
        ),
    }
    small = encode(Image.new("RGBA", (8, 8)), "png")
    found = decode_bounded({"a": small, kind: images[kind]()}, tmp_path, 256 << 20)
    said, growth = found[kind][1:]
    assert said == "(2048, 2048, 3)"
    assert growth < per_pixel * 2048 * 2048 + (32 << 20)


def test_the_limit_is_a_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    image = encode(Image.new("RGB", (30, 20)), "png")
    assert image_size(image, max_pixels=600) == (30, 20)
    assert decode_image(image, "png", max_pixels=600).shape == (20, 30, 3)
    for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff"):
        image = encode(Image.new("RGB", (30, 20)), kind)
        for ask in (lambda i: image_size(i, max_pixels=599), lambda i: decode_image(i, "jpg", max_pixels=599)):
            with pytest.raises(ImageTooLarge, match=r"^the image is 30x20, more than 599 pixels$"):
                ask(image)
    with pytest.raises(ImageTooLarge, match=r"^the image is 900x700, more than 1000 pixels$"):
        image_size(gif_claiming(900, 700), max_pixels=1000)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "it has no bytes"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "it is HTML, SVG or other markup"),
        (b"\n <svg xmlns='http://www.w3.org/2000/svg' width='99999'/>", "it is HTML, SVG or other markup"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown or damaged format"),
        (b"\0" * 4096, "unknown or damaged format"),
        (b"RIFF\x20\0\0\0WEBPVP8X", "could not create decoder object"),
    ],
)
def test_what_is_no_image_has_a_reason(image: bytes, reason: str) -> None:
    with pytest.raises(DamagedSample, match=rf"^the image header cannot be read: {reason}$"):
        image_size(image)
    with pytest.raises(DamagedSample, match=rf"^the image cannot be decoded: {reason}$"):
        decode_image(image, "jpg")


@pytest.fixture
def photo() -> Image.Image:
    """A smooth image, 40 wide and 24 high, no two corners of which are alike."""
    y, x = np.mgrid[0:24, 0:40]
    return Image.fromarray(np.stack([x * 6, y * 10, x + y], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_a_file_cut_anywhere_is_damage_or_a_whole_image(kind: str, photo: Image.Image) -> None:
    """Never another exception, and never half an image."""
    content = encode(photo, kind)
    refused = []
    for end in range(0, len(content), max(1, len(content) // 60)):
        try:
            assert decode_image(content[:end], kind).shape == (24, 40, 3)
        except DamagedSample as error:
            refused.append(str(error))
    assert len(refused) > (10 if kind == "jpeg" else 30)
    assert all(reason.startswith("the image cannot be decoded: ") for reason in refused)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_all_eight_orientations(kind: str, orientation: int, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("jpeg", "webp") else {}
    stored = np.asarray(Image.open(io.BytesIO(encode(photo, kind, **options))).convert("RGB"))
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    assert np.array_equal(decode_image(encode(photo, kind, exif=exif, **options), kind), turn(stored))


@pytest.mark.parametrize("adobe", [True, False])
@pytest.mark.parametrize("transform", [0, 2])
def test_cmyk_and_ycck_equal_pillow(adobe: bool, transform: int, photo: Image.Image) -> None:
    """Four components, stored as they are (0) or as YCCK (2); both with and without the marker that says so."""
    cmyk = Image.merge("CMYK", (*photo.split(), photo.split()[0].rotate(180)))
    content = encode(cmyk, "jpeg", quality=95)
    at = content.index(b"Adobe")
    assert content[at + 11] == 0
    marked = content[: at + 11] + bytes([transform]) + content[at + 12 :]
    image = marked if adobe else content[: at - 4] + content[at + 12 :]
    reference = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    assert np.array_equal(decode_image(image, "jpg"), reference)
    if adobe and transform == 0:
        assert np.abs(reference.astype(int) - np.asarray(cmyk.convert("RGB"))).mean() < 6


@pytest.mark.parametrize(("across", "down"), [(1, 1), (4, 1), (4, 2), (3, 1), (1, 4), (3, 2)])
def test_rare_subsamplings(across: int, down: int) -> None:
    """Those that simplejpeg does not know go through Pillow."""
    content = encode(Image.new("L", (64, 48), 128).convert("RGB"), "jpeg", subsampling=0)
    frame, scan = content.index(b"\xff\xc0"), content.index(b"\xff\xda")
    header = bytearray(content[: scan + 14])
    header[frame + 11] = across << 4 | down
    header[scan + 6 : scan + 11 : 2] = bytes(3)  # One set of Huffman tables for all: a block of zeros is 001010.
    blocks = -(-64 // (8 * across)) * -(-48 // (8 * down)) * (across * down + 2)
    bits = "001010" * blocks + "1" * (-6 * blocks % 8)
    image = bytes(header) + int(bits, 2).to_bytes(len(bits) // 8, "big") + b"\xff\xd9"
    assert image_size(image) == (64, 48)
    pixels = decode_image(image, "jpg")
    assert (pixels.shape, pixels.min(), pixels.max()) == ((48, 64, 3), 128, 128)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_in_either_order_are_scaled(kind: str) -> None:
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    expected = np.repeat(np.array([[0, 100], [200, 255]], dtype=np.uint8)[..., None], 3, axis=2)
    images = [Image.fromarray(values)]
    if kind == "tiff":
        images.append(Image.frombytes("I;16B", (2, 2), values.astype(">u2").tobytes()))
    for image in images:
        assert np.array_equal(decode_image(encode(image, kind), kind), expected)


@pytest.mark.parametrize("kind", ["png", "gif", "bmp", "tiff"])
def test_one_bit(kind: str) -> None:
    bits = Image.fromarray(np.array([[True, False], [False, True]]))
    assert decode_image(encode(bits, kind), kind)[..., 1].tolist() == [[255, 0], [0, 255]]


def frames(count: int = 3) -> list[Image.Image]:
    """Noise of one colour channel each: frames that differ everywhere."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (count, 16, 16), dtype=np.uint8)
    return [Image.fromarray(np.stack([n, n // 2, 255 - n], axis=-1)) for n in noise]


def second_frame(image: bytes) -> bytes | None:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.seek(1)
            return opened.convert("RGB").tobytes()
    except (OSError, SyntaxError, IndexError, zlib.error):
        return None


@pytest.mark.parametrize(
    ("kind", "marker", "place"), [("gif", b"\x21\xf9", -2), ("png", b"fdAT", 0), ("webp", b"VP8L", 1)]
)
def test_of_an_animation_the_first_frame_alone_is_decoded(kind: str, marker: bytes, place: int) -> None:
    """The second is overwritten, or cut, behind its header: who decodes it stumbles."""
    first, *others = frames()
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    content = encode(first, kind, save_all=True, append_images=others, **options)
    second = [match.start() for match in re.finditer(marker, content)][place]
    spoilt = content[: second + 40] + (b"" if kind == "gif" else b"\xa5" * 60 + content[second + 100 :])
    assert second_frame(spoilt) != second_frame(content) is not None
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(decode_image(spoilt, kind), expected)
    if kind != "gif":
        assert np.array_equal(expected, np.asarray(first))


def test_palette_with_several_transparent_entries(photo: Image.Image) -> None:
    image = photo.quantize(8)
    content = encode(image, "png", transparency=bytes([0, 128, 255, 255, 255, 255, 255, 255]))
    rgba = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGBA")
    alpha = np.asarray(rgba)[..., 3:].astype(float) / 255
    expected = np.asarray(rgba)[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(decode_image(content, "png") - expected).max() <= 1
