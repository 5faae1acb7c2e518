"""Images made to harm who opens them: a few kilobytes that claim to be, or unpack to, very much."""

import io
import struct
import zlib
from typing import Any

from PIL import Image


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG with `chunks` behind its header; its rows are all zero where it is small enough to write them."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = zlib.compress(bytes((width + 1) * height if width * height < 1 << 20 else 1000))
    extra = b"".join(png_chunk(kind, content) for kind, content in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int, **options: Any) -> bytes:
    content = encode(Image.new("RGB", (64, 48)), "jpeg", **options)
    at = content.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def gif_claiming(width: int, height: int) -> bytes:
    """A small canvas whose first frame is large, as is the canvas of what decodes it."""
    content = encode(Image.new("P", (4, 4), 1), "gif")
    at = content.index(b"\x2c")
    return content[: at + 5] + struct.pack("<HH", width, height) + content[at + 9 :]


def webp_claiming(width: int, height: int) -> bytes:
    content = encode(Image.new("RGBA", (4, 4)), "webp", save_all=True, append_images=[Image.new("RGBA", (4, 4), "red")])
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return content[:24] + sides + content[30:]


def tiff_claiming(width: int, height: int) -> bytes:
    content = encode(Image.new("L", (4, 4)), "tiff")
    for tag, value in ((256, width), (257, height)):
        at = content.index(struct.pack("<HHII", tag, 4, 1, 4))
        content = content[:at] + struct.pack("<HHII", tag, 4, 1, value) + content[at + 12 :]
    return content


def exif_bomb(entries: int, each: int) -> bytes:
    """A TIFF block all of whose entries name the same bytes: read one by one they are `entries * each`."""
    start = 8 + 2 + 12 * entries + 4
    block = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", entries)
    block += b"".join(struct.pack("<HHII", 1000 + i, 7, each, start) for i in range(entries))
    return block + bytes(4) + bytes(each)


def jpeg_with_exif(block: bytes) -> bytes:
    """In as many segments as it takes."""
    content = encode(Image.new("RGB", (8, 8)), "jpeg")
    parts = [b"Exif\0\0" + block[i : i + 65_000] for i in range(0, len(block), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return content[:2] + segments + content[2:]


BOMBS = {
    "jpeg": jpeg_claiming(65_500, 65_500),
    "progressive jpeg": jpeg_claiming(65_500, 65_500, progressive=True),
    "png": png_with(50_000, 50_000),
    "png just over": png_with(8193, 8192),
    "png between the limits": png_with(12_000, 12_000),
    "gif": gif_claiming(65_535, 65_535),
    "webp": webp_claiming(16_383, 16_383),
    "webp just over": webp_claiming(8193, 8192),
    "tiff": tiff_claiming(60_000, 60_000),
    "bmp": (lambda b: b[:18] + struct.pack("<ii", 50_000, 50_000) + b[26:])(encode(Image.new("RGB", (4, 4)), "bmp")),
}
"""All claim more than MAX_PIXELS."""


def swollen() -> dict[str, bytes]:
    """Small images with something in them that is 128 MiB or more when it is unpacked."""
    zeros = zlib.compress(bytes(1 << 27), 1)
    texts = [(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(1 << 20), 1)) for i in range(128)]
    end = png_chunk(b"IEND", b"")
    return {
        "profile": png_with(8, 8, (b"iCCP", b"profile\0\0" + zeros)),
        "compressed text": png_with(8, 8, (b"zTXt", b"text\0\0" + zeros)),
        "international text": png_with(8, 8, (b"iTXt", b"text\0\x01\0\0\0" + zeros)),
        "many texts": png_with(8, 8, *texts),
        "rows": png_with(8, 8).removesuffix(end) + png_chunk(b"IDAT", zeros) + end,
        "tags of a jpeg": jpeg_with_exif(exif_bomb(4000, 100_000)),
        "tags of a png": encode(Image.new("RGB", (8, 8)), "png", exif=b"Exif\0\0" + exif_bomb(4000, 100_000)),
        "tags of a tiff": exif_bomb(4000, 100_000),
    }
