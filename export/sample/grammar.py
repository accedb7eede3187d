"""The words of the captions: attributes, synonyms, phrases. Data only."""

from __future__ import annotations

from scenes import AXES, COLOURS, KINDS, PLACES, SIZES, TEXTURES

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": tuple(COLOURS),
    "count": ("one", "two"),
    "kind0": KINDS,
    "colour0": tuple(COLOURS),
    "size0": SIZES,
    "texture": TEXTURES,
    "place": PLACES,
    "kind1": KINDS,
    "colour1": tuple(COLOURS),
    "size1": SIZES,
    "axis": AXES,
}
SYNONYMS = {
    "circle": ("circle", "circle", "circle", "disc"),
    "square": ("square", "square", "square", "box"),
    "ring": ("ring", "ring", "ring", "hoop"),
    "cross": ("cross", "cross", "cross", "plus"),
    "small": ("small", "small", "small", "little", "tiny"),
    "large": ("large", "large", "large", "big", "huge"),
}
PLACE_PHRASES = {
    "center": ("in the center", "in the middle"),
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part"),
}
RELATIONS = {
    ("horizontal", 0): ("to the left of", "left of", "on the left of"),
    ("horizontal", 1): ("to the right of", "right of", "on the right of"),
    ("vertical", 0): ("above", "over", "on top of"),
    ("vertical", 1): ("below", "under", "beneath"),
}
SIDES = {
    ("horizontal", 0): ("on the left",),
    ("horizontal", 1): ("on the right",),
    ("vertical", 0): ("at the top", "above"),
    ("vertical", 1): ("at the bottom", "below"),
}
TEXTURE_PHRASES = {
    "plain": ("without stripes or dots", "with no stripes", "with no dots", "without a pattern"),
    "striped": ("with stripes", "with stripes and no dots"),
    "dotted": ("with dots", "with dots and no stripes"),
}
QUALITY = ("masterpiece", "best quality", "high quality", "flat design", "simple", "a drawing of", "a picture of")
JUNK_WORDS = (
    "cat dog tree house forest river mountain sky sun moon sea boat car road city flower bird fish girl boy man woman "
    "face hair eyes hat dress light dark bright old new beautiful photo painting sketch art style detailed portrait "
    "landscape night day morning winter summer water fire stone wood gold silver glass castle robot dragon"
)
JUNK = tuple(JUNK_WORDS.split())
