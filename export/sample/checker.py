"""Reads a picture back into facts, and compares them with a caption's. Knows nothing of networks or torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from scenes import COLOURS, KINDS, OUTLINES, OVERSAMPLING, SIZE, Thing, draw_shape

BORDER = 3
THING_DISTANCE, TEXTURE_DISTANCE = 62, 20
SMALLEST_AREA = 100
LARGE_FROM = 22.0
CENTER_WITHIN = 12
GRID = 32

Mask = np.ndarray
Facts = dict[str, str]


def check(picture: np.ndarray, named: Mapping[str, str]) -> dict[str, bool]:
    """For each attribute a caption names: does the picture, uint8 [128, 128, 3], show it?"""
    seen = [look(picture, order) for order in ((0, 1), (1, 0))]
    if "axis" in named or named.get("count") == "one":
        seen = seen[:1]
    compared = [{name: facts.get(name) == value for name, value in named.items()} for facts in seen]
    return max(compared, key=lambda right: sum(right.values()))


def look(picture: np.ndarray, order: tuple[int, ...] = (0, 1)) -> Facts:
    """The picture's attributes; with two things, 0 is the left or upper one (or the other, by `order`)."""
    pixels = picture.astype(np.float32)
    edges = (pixels[:BORDER], pixels[-BORDER:], pixels[:, :BORDER], pixels[:, -BORDER:])
    ground = np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)
    distance = np.linalg.norm(pixels - ground, axis=2)
    parts = components(distance > THING_DISTANCE)
    facts = {"background": nearest_colour(ground), "texture": _texture(distance)}
    if len(parts) not in (1, 2):
        return facts
    facts["count"] = ("one", "two")[len(parts) - 1]
    centres = np.array([_centre(part) for part in parts])
    if len(parts) == 1:
        return facts | {"place": _place(*(centres[0] - SIZE / 2))} | _thing_facts(pixels, parts[0], 0)
    spread = np.abs(centres[0] - centres[1])
    axis = int(spread[1] > spread[0])
    facts["axis"] = ("horizontal", "vertical")[axis]
    ranked = [parts[i] for i in np.argsort(centres[:, axis])]
    for i, which in enumerate(order):
        facts |= _thing_facts(pixels, ranked[which], i)
    return facts


def components(mask: Mask) -> list[Mask]:
    """The connected parts of a mask that are large enough to be things."""
    left, parts = mask.copy(), []
    while left.any():
        part = _flood(left, tuple(np.argwhere(left)[0]))
        left &= ~part
        if part.sum() >= SMALLEST_AREA:
            parts.append(part)
    return parts


def _flood(mask: Mask, start: tuple[int, ...]) -> Mask:
    """The pixels of a mask that can be reached from one of them."""
    part, waiting = np.zeros_like(mask), [start]
    height, width = mask.shape
    part[start] = True
    while waiting:
        y, x = waiting.pop()
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < height and 0 <= u < width and mask[v, u] and not part[v, u]:
                part[v, u] = True
                waiting.append((v, u))
    return part


def nearest_colour(rgb: np.ndarray) -> str:
    """The palette's closest colour."""
    return min(COLOURS, key=lambda name: float(np.linalg.norm(rgb - np.array(COLOURS[name]))))


def _thing_facts(pixels: np.ndarray, part: Mask, i: int) -> Facts:
    inner = _eroded(_eroded(part))
    colour = np.median(pixels[inner if inner.any() else part], axis=0)
    kind = nearest_kind(part)
    top, bottom, left, right = _box(part)
    radius = max(bottom - top, right - left) / 2 / _extent(kind)
    size = "large" if radius >= LARGE_FROM else "small"
    return {f"kind{i}": kind, f"colour{i}": nearest_colour(colour), f"size{i}": size}


def nearest_kind(part: Mask) -> str:
    """The kind whose silhouette overlaps best, both stretched to the same box."""
    shape = _normalised(part)
    return max(KINDS, key=lambda kind: float((shape & _template(kind)).sum() / (shape | _template(kind)).sum()))


@cache
def _template(kind: str) -> Mask:
    picture = Image.new("RGB", (SIZE * OVERSAMPLING,) * 2)
    thing = Thing(kind, "white", "large", (SIZE / 2, SIZE / 2), 50.0)
    draw_shape(ImageDraw.Draw(picture), thing, (255,) * 3, (0,) * 3)
    return _normalised(np.asarray(picture.reduce(OVERSAMPLING))[..., 0] > 127)


def _normalised(part: Mask) -> Mask:
    """A mask's box, sampled on a square grid."""
    top, bottom, left, right = _box(part)
    rows = (top + (np.arange(GRID) + 0.5) / GRID * (bottom - top)).astype(int)
    columns = (left + (np.arange(GRID) + 0.5) / GRID * (right - left)).astype(int)
    sampled: Mask = part[np.ix_(rows, columns)]
    return sampled


def _box(part: Mask) -> tuple[int, int, int, int]:
    """First row, last row + 1, first column, last column + 1."""
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _centre(part: Mask) -> tuple[float, float]:
    top, bottom, left, right = _box(part)
    return (left + right) / 2, (top + bottom) / 2


def _extent(kind: str) -> float:
    """Half the longer side of a kind's box at radius 1."""
    if kind not in OUTLINES:
        return 1.0
    points = np.array(OUTLINES[kind])
    return float((points.max(0) - points.min(0)).max() / 2)


def _place(dx: float, dy: float) -> str:
    if max(abs(dx), abs(dy)) <= CENTER_WITHIN:
        return "center"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def _texture(distance: np.ndarray) -> str:
    """Stripes run from top to bottom, so they show in the columns' medians; dots do not."""
    ground = ~_grown(_grown(distance > THING_DISTANCE))
    shaded = ground & (distance > TEXTURE_DISTANCE)
    if shaded.sum() < 0.06 * ground.sum():
        return "plain"
    share = shaded.sum(0) / np.maximum(ground.sum(0), 1)
    return "striped" if np.abs(share - 0.5).mean() > 0.33 else "dotted"


def _eroded(mask: Mask) -> Mask:
    return _joined(mask, np.logical_and)


def _grown(mask: Mask) -> Mask:
    return _joined(mask, np.logical_or)


def _joined(mask: Mask, join: Callable[[Mask, Mask], Mask]) -> Mask:
    """A mask joined with itself moved by one pixel each way."""
    result = mask
    for axis in (0, 1):
        for shift in (1, -1):
            result = join(result, np.roll(mask, shift, axis))
    return result
