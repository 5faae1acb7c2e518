"""Draws a scene: where each object goes, and its pixels. Boxes are (left, top, right, bottom) in whole pixels.

Masks are drawn with Pillow at four times the size and reduced, once per shape, texture and size; composing a scene
from them is numpy, so that a core renders thousands of scenes a second.
"""

import math
from functools import lru_cache

import numpy as np
import simplejpeg
from PIL import Image, ImageDraw, ImageFilter

COLOURS = {
    "red": (214, 30, 36),
    "orange": (245, 130, 20),
    "yellow": (240, 205, 0),
    "green": (30, 150, 50),
    "blue": (30, 80, 220),
    "purple": (125, 40, 165),
    "pink": (245, 120, 180),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
TEXTURES = ("solid", "striped", "dotted", "checked")
JPEG_QUALITY = 92
FEATURE_SIDE = 8

Box = tuple[int, int, int, int]
_SCALE = 4
_EXTENTS = {"small": (14, 17), "large": (24, 28)}  # At 64 pixels, both ends included.
_MARGIN = 2
_GAP = 2
_JITTER = 5
_LIGHT = 242.0


def draw_extents(rng: np.random.Generator, sizes: list[str], size: int, in_line: bool) -> list[int]:
    """Pixels of the square around each object. Three in a line must share the image, so they take the smallest."""
    ranges = [_EXTENTS[name] for name in sizes]
    drawn = [low if in_line else int(rng.integers(low, high + 1)) for low, high in ranges]
    return [round(extent * size / 64) for extent in drawn]


def lay_out(rng: np.random.Generator, axis: str, third: str, extents: list[int], size: int) -> list[Box]:
    """Places squares of `extents` in an image without overlap.

    Computed for a row (the first two along x); a column is the same with x and y exchanged.
    """
    margin, gap = _scaled(_MARGIN, size), _scaled(_GAP, size)
    line = extents if third == "line" else extents[:2]
    along = _spread(rng, line, margin, size, gap)
    block = max(line)
    if third in {"", "line"}:
        across = _baseline(rng, line, margin, size - margin, size)
        corners = list(zip(along, across, strict=True))
    else:
        first = third in {"above", "left"}
        order = [extents[2], block] if first else [block, extents[2]]
        tops = _spread(rng, order, margin, size, gap)
        block_top, third_top = (tops[1], tops[0]) if first else (tops[0], tops[1])
        across = _baseline(rng, line, block_top, block_top + block, size)
        third_left = int(rng.integers(margin, size - margin - extents[2] + 1))
        corners = [*zip(along, across, strict=True), (third_left, third_top)]
    if axis == "column":
        corners = [(y, x) for x, y in corners]
    return [(x, y, x + extent, y + extent) for (x, y), extent in zip(corners, extents, strict=True)]


def render(
    rng: np.random.Generator, looks: list[tuple[str, str, str]], boxes: list[Box], size: int
) -> tuple[np.ndarray, list[Box]]:
    """Paints objects given as (shape, colour, texture) into `boxes` on a light, noisy ground.

    Returns:
        pixels_HWC uint8, and the box of each object's visible pixels.
    """
    tint = rng.integers(225, 250, size=3)
    pixels_HWC = (tint + rng.integers(-8, 9, size=(size, size, 3))).astype(np.float32)
    tight: list[Box] = []
    for (shape, colour, texture), (left, top, right, bottom) in zip(looks, boxes, strict=True):
        alpha_HW1, light_HW1, (dx0, dy0, dx1, dy1) = _stamp(shape, texture, right - left)
        base_C = np.array(COLOURS[colour], dtype=np.float32)
        paint_HWC = base_C + light_HW1 * (_LIGHT - base_C)
        patch = pixels_HWC[top:bottom, left:right]
        patch += alpha_HW1 * (paint_HWC - patch)
        tight.append((left + dx0, top + dy0, left + dx1, top + dy1))
    return pixels_HWC.clip(0, 255).astype(np.uint8), tight


def encode(pixels_HWC: np.ndarray) -> bytes:
    """The JPEG of a scene."""
    return simplejpeg.encode_jpeg(pixels_HWC, JPEG_QUALITY, colorsubsampling="444")


def crop_features(pixels_HWC: np.ndarray, boxes: list[Box]) -> np.ndarray:
    """What stands in for a detector: each box's crop resized (bilinear, antialiased) to 8x8x3 and divided by 255.

    Returns:
        features_KD, float16, K boxes, D = 192 in the order row, column, channel.
    """
    side = (FEATURE_SIDE, FEATURE_SIDE)
    image = Image.fromarray(pixels_HWC)
    crops = [np.asarray(image.resize(side, Image.Resampling.BILINEAR, box=box)) for box in boxes]
    return (np.stack(crops).reshape(len(boxes), -1) / np.float32(255)).astype(np.float16)


def _scaled(pixels: int, size: int) -> int:
    return max(1, round(pixels * size / 64))


def _spread(rng: np.random.Generator, extents: list[int], margin: int, size: int, gap: int) -> list[int]:
    """Starts of intervals in a row, at least `gap` apart, the free space shared out at random."""
    free = size - 2 * margin - sum(extents) - gap * (len(extents) - 1)
    shares = np.sort(rng.integers(0, max(free, 0) + 1, size=len(extents))).tolist()
    starts, used = [], margin
    for share, extent in zip(shares, extents, strict=True):
        starts.append(used + share)
        used += extent + gap
    return starts


def _baseline(rng: np.random.Generator, extents: list[int], low: int, high: int, size: int) -> list[int]:
    """Starts across the line: one height for all, each moved a little, all within [low, high]."""
    block = max(extents)
    centre = int(rng.integers(low, high - block + 1)) + block // 2
    jitter = _scaled(_JITTER, size)
    moved = rng.integers(-jitter, jitter + 1, size=len(extents)).tolist()
    return [
        min(max(centre - extent // 2 + move, low), high - extent) for extent, move in zip(extents, moved, strict=True)
    ]


@lru_cache(maxsize=2048)
def _stamp(shape: str, texture: str, extent: int) -> tuple[np.ndarray, np.ndarray, Box]:
    """Opacity and strength of the light tone, both (H, W, 1) float32 in 0..1, and the box of what can be seen."""
    outline = _shape_mask(shape, extent * _SCALE)
    # The texture stays inside a rim of pure colour, so that a shape keeps its edge on the light ground.
    rim = max(1, round(extent * _SCALE / 36))
    inside = np.asarray(outline.filter(ImageFilter.BoxBlur(rim))) == 255
    light = _reduced(_texture(texture, extent * _SCALE) * inside, extent)
    alpha = _reduced(np.asarray(outline, dtype=np.float32) / 255, extent)
    rows, columns = np.nonzero((alpha > 0.3).any(1))[0], np.nonzero((alpha > 0.3).any(0))[0]
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return alpha[..., None], light[..., None], box


def _reduced(mask: np.ndarray, extent: int) -> np.ndarray:
    return mask.reshape(extent, _SCALE, extent, _SCALE).mean((1, 3), dtype=np.float32)


def _texture(texture: str, side: int) -> np.ndarray:
    """1 where the light second tone shows, float32 (side, side); the period keeps about three repeats visible."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) + 0.5
    period = max(side / 4, 5 * _SCALE)
    if texture == "striped":
        return ((x + y) % period < period * 0.45).astype(np.float32)
    if texture == "dotted":
        dx, dy = (x - side / 2) % period - period / 2, (y - side / 2) % period - period / 2
        return (dx**2 + dy**2 < (period * 0.3) ** 2).astype(np.float32)
    if texture == "checked":
        half = period * 0.6
        cells = np.floor((x - side / 2) / half) + np.floor((y - side / 2) / half)
        return (cells % 2).astype(np.float32)
    return np.zeros((side, side), dtype=np.float32)


def _shape_mask(shape: str, side: int) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    end = side - 1
    if shape in {"circle", "ring"}:
        draw.ellipse((0, 0, end, end), fill=255)
    if shape == "ring":
        hole = side * 0.27
        draw.ellipse((hole, hole, end - hole, end - hole), fill=0)
    if shape in _OUTLINES:
        draw.polygon([(x * end, y * end) for x, y in _OUTLINES[shape]], fill=255)
    return mask


def _star() -> list[tuple[float, float]]:
    radii = [0.53 if i % 2 == 0 else 0.25 for i in range(10)]
    angles = [math.pi * i / 5 for i in range(10)]
    return [(0.5 + r * math.sin(a), 0.53 - r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]


def _heart() -> list[tuple[float, float]]:
    """x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled to the unit square."""
    turns = [2 * math.pi * i / 64 for i in range(64)]
    xs = [16 * math.sin(t) ** 3 for t in turns]
    ys = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [((x + 16) / 32, (12 - y) / 29) for x, y in zip(xs, ys, strict=True)]


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95)],
    "triangle": [(0.5, 0.02), (1.0, 0.96), (0.0, 0.96)],
    "diamond": [(0.5, 0.0), (0.92, 0.5), (0.5, 1.0), (0.08, 0.5)],
    "cross": [
        *[(0.33, 0.0), (0.67, 0.0), (0.67, 0.33), (1.0, 0.33), (1.0, 0.67), (0.67, 0.67)],
        *[(0.67, 1.0), (0.33, 1.0), (0.33, 0.67), (0.0, 0.67), (0.0, 0.33), (0.33, 0.33)],
    ],
    "star": _star(),
    "heart": _heart(),
}
