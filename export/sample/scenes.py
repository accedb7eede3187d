"""Scenes: coloured shapes on a background, as data and as pictures. Knows nothing of captions, networks or torch."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
OVERSAMPLING = 2
KINDS = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = {
    "red": (215, 35, 45),
    "green": (40, 160, 70),
    "blue": (45, 85, 215),
    "yellow": (250, 220, 60),
    "orange": (240, 125, 20),
    "purple": (135, 55, 175),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
PLACES = ("center", "left", "right", "top", "bottom")
AXES = ("horizontal", "vertical")
DIRECTIONS = {"center": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
SINGLE_RADII = {"small": (17, 20), "large": (31, 37)}
PAIR_RADII = {"small": (16, 19), "large": (24, 28)}
COLOUR_JITTER = 8
TEXTURE_SHIFT = 30
HELD_OUT_ONE_IN = 16

Point = tuple[float, float]


@dataclass(frozen=True)
class Thing:
    """One shape: what it is called and where it stands (pixels of a 128x128 picture)."""

    kind: str
    colour: str
    size: str
    centre: Point
    radius: float


@dataclass(frozen=True)
class Scene:
    """One or two things on a background; two things stand in reading order (left or top first)."""

    things: tuple[Thing, ...]
    background: str
    texture: str
    place: str | None
    axis: str | None


def is_held_out(scene: Scene) -> bool:
    """One combination of kinds, colours, sizes and background in sixteen is never trained on, in any arrangement."""
    names = sorted((thing.kind, thing.colour, thing.size) for thing in scene.things)
    digest = hashlib.sha256(repr((names, scene.background)).encode()).digest()
    return digest[0] % HELD_OUT_ONE_IN == 0


def random_scene(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """Draw scenes until one falls on the wanted side of the hold-out line."""
    while True:
        scene = _pair(rng) if rng.random() < 0.45 else _single(rng)
        if is_held_out(scene) == held_out:
            return scene


def _choice(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _setting(rng: np.random.Generator) -> tuple[str, str, list[str]]:
    """A background, its texture and the colours that stand out from it."""
    background = _choice(rng, tuple(COLOURS))
    texture = str(rng.choice(TEXTURES, p=(0.84, 0.08, 0.08)))
    return background, texture, [colour for colour in COLOURS if colour != background]


def _single(rng: np.random.Generator) -> Scene:
    background, texture, colours = _setting(rng)
    size, place = _choice(rng, SIZES), str(rng.choice(PLACES, p=(0.4, 0.15, 0.15, 0.15, 0.15)))
    radius = rng.uniform(*SINGLE_RADII[size])
    offset = 24 if size == "large" else rng.uniform(26, 34)
    x, y = (SIZE / 2 + offset * direction + rng.uniform(-2, 2) for direction in DIRECTIONS[place])
    thing = Thing(_choice(rng, KINDS), _choice(rng, colours), size, (x, y), radius)
    return Scene((thing,), background, texture, place, None)


def _pair(rng: np.random.Generator) -> Scene:
    background, texture, colours = _setting(rng)
    axis, twins = _choice(rng, AXES), rng.random() < 0.15
    things: list[Thing] = []
    for along in (SIZE / 4, SIZE * 3 / 4):
        size = things[0].size if twins and things else _choice(rng, SIZES)
        kind = things[0].kind if twins and things else _choice(rng, KINDS)
        colour = things[0].colour if twins and things else _choice(rng, colours)
        along, across = along + rng.uniform(-1, 1), SIZE / 2 + rng.uniform(-5, 5)
        centre = (along, across) if axis == "horizontal" else (across, along)
        things.append(Thing(kind, colour, size, centre, rng.uniform(*PAIR_RADII[size])))
    return Scene(tuple(things), background, texture, None, axis)


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The picture: uint8 of shape [128, 128, 3], colours and textures slightly varied by rng."""
    ground = _varied(scene.background, rng)
    picture = Image.new("RGB", (SIZE * OVERSAMPLING,) * 2, ground)
    canvas = ImageDraw.Draw(picture)
    _draw_texture(canvas, scene.texture, ground, rng)
    for thing in scene.things:
        draw_shape(canvas, thing, _varied(thing.colour, rng), ground)
    return np.asarray(picture.reduce(OVERSAMPLING))


def draw_shape(canvas: ImageDraw.ImageDraw, thing: Thing, fill: tuple[int, ...], hole: tuple[int, ...]) -> None:
    """Draw one shape on an oversampled canvas; a ring's hole takes the colour of the ground."""
    x, y, r = (value * OVERSAMPLING for value in (*thing.centre, thing.radius))
    if thing.kind in ("circle", "ring"):
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        if thing.kind == "ring":
            inner = 0.55 * r
            canvas.ellipse((x - inner, y - inner, x + inner, y + inner), fill=hole)
        return
    canvas.polygon([(x + r * u, y + r * v) for u, v in OUTLINES[thing.kind]], fill=fill)


def _star() -> list[Point]:
    """Five points on the unit circle, one upwards, with inner corners at 0.42."""
    corners = [(1.0 if i % 2 == 0 else 0.42, math.pi * i / 5) for i in range(10)]
    return [(length * math.sin(angle), -length * math.cos(angle)) for length, angle in corners]


def _cross() -> list[Point]:
    """A plus sign whose arms are a third of its width."""
    a = 0.36
    quarter = [(-a, -1.0), (a, -1.0), (a, -a)]
    turned = [quarter, [(-y, x) for x, y in quarter], [(-x, -y) for x, y in quarter], [(y, -x) for x, y in quarter]]
    return [point for part in turned for point in part]


OUTLINES: dict[str, list[Point]] = {
    "square": [(-0.92, -0.92), (0.92, -0.92), (0.92, 0.92), (-0.92, 0.92)],
    "triangle": [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)],
    "star": _star(),
    "cross": _cross(),
}


def _varied(colour: str, rng: np.random.Generator) -> tuple[int, ...]:
    shifts = rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    return tuple(int(np.clip(value + shift, 0, 255)) for value, shift in zip(COLOURS[colour], shifts, strict=True))


def _draw_texture(canvas: ImageDraw.ImageDraw, texture: str, ground: tuple[int, ...], rng: np.random.Generator) -> None:
    """Stripes or dots in a darker shade of the ground (a lighter one where the ground is dark)."""
    shift = TEXTURE_SHIFT if sum(ground) < 200 else -TEXTURE_SHIFT
    shade = tuple(int(np.clip(value + shift, 0, 255)) for value in ground)
    extent, pitch = SIZE * OVERSAMPLING, int(rng.integers(15, 18)) * OVERSAMPLING
    start = int(rng.integers(pitch)) - pitch
    if texture == "striped":
        for x in range(start, extent, pitch):
            canvas.rectangle((x, 0, x + pitch * 0.4, extent), fill=shade)
    if texture == "dotted":
        for x in range(start, extent, pitch):
            for y in range(start, extent, pitch):
                canvas.ellipse((x, y, x + pitch * 0.55, y + pitch * 0.55), fill=shade)
