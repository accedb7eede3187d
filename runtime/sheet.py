"""X/Y sheets: one request varied along two axes with everything else locked, drawn as one labelled picture."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from .errors import RequestError
from .fields import TEXT, Kind
from .request import ALIASES, FIELDS, Request, unknown_field
from .resolve import random_seed

if TYPE_CHECKING:
    from .result import Result

GAP = 4
MAX_CELLS = 400
_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})(?:\(\+(\d{1,6})\))?", re.ASCII)


@dataclass(frozen=True)
class Axis:
    """One field of Request and the values that it takes."""

    field: str
    values: tuple[Any, ...]

    def label(self, value: Any) -> str:
        return str(value) if self.field == "prompt" else f"{self.field} {value}"


def parse_axis(text: str) -> Axis:
    """An axis such as `clip_skip=1-13`, `cfg=1,4,7.5`, `steps=10-30(+5)` or `prompt="a cat, sitting","a dog"` (CSV)."""
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    name = ALIASES.get(name, name)
    if not equals or not values.strip():
        raise RequestError(f"an axis is written FIELD=VALUES, as in clip_skip=1-13; not {text!r}", field="axis")
    if name not in FIELDS:
        raise unknown_field(name)
    if name == "batch":
        raise RequestError("batch is no axis: a cell shows one picture", field="axis", hint="vary the seed: seed=1-4")
    try:
        items = next(csv.reader([values], skipinitialspace=True))
    except (csv.Error, StopIteration) as error:
        raise RequestError(f"the values of the axis {name} are no list ({error})", field="axis") from error
    return Axis(name, tuple(value for item in items for value in _values(FIELDS[name].kind, item)))


def _values(kind: Kind, item: str) -> Sequence[object]:
    """What one item of an axis stands for: a text as it is, one value, or the numbers of a range."""
    if kind is TEXT:
        return [item]
    if spread := _RANGE.fullmatch(item.strip()):
        low, high, step = int(spread[1]), int(spread[2]), int(spread[3] or 1)
        if low <= high and step > 0 and (high - low) // step < MAX_CELLS:
            return range(low, high + 1, step)
    value = kind.read(item.strip())
    if kind.take(value) is None:
        raise RequestError(f"{item!r} is neither a number nor a range such as 1-13 or 10-30(+5)", field="axis")
    return [value]


def requests(base: Request, x: Axis, y: Axis) -> list[Request]:
    """One request per cell, row by row. A random seed is drawn once, so that only the axes differ."""
    if len(x.values) * len(y.values) > MAX_CELLS:
        raise RequestError(f"a sheet has at most {MAX_CELLS} cells", field="axis")
    if base.batch != 1:
        raise RequestError(f"a cell shows one picture, not a batch of {base.batch}", field="batch", hint="leave it out")
    drawn: dict[str, Any] = {name: random_seed() for name in ("seed", "subseed") if getattr(base, name) in (None, -1)}
    base = replace(base, **drawn)
    return [replace(base, **{y.field: j, x.field: i}) for j in y.values for i in x.values]


def draw(results: Sequence[Result], x: Axis, y: Axis) -> Image.Image:
    """The first picture of each result, row by row, with the values of the axes above and at the left."""
    pictures = [result.images[0] for result in results]
    width, height = (max(sides) for sides in zip(*(picture.size for picture in pictures), strict=True))
    letters = max(11, width // 11)
    font = ImageFont.load_default(size=letters)
    left, top = width + GAP, 2 * letters + 2 * GAP
    lefts = [left + column * (width + GAP) for column in range(len(x.values) + 1)]
    tops = [top + row * (height + GAP) for row in range(len(y.values) + 1)]
    sheet = Image.new("RGB", (lefts[-1], tops[-1]), "white")
    pen = ImageDraw.Draw(sheet)
    for value, place in zip(x.values, lefts, strict=False):
        pen.text((place + width // 2, top // 2), x.label(value), "black", font, anchor="mm")
    for value, place in zip(y.values, tops, strict=False):
        text = wrap(y.label(value), width - GAP, font)
        pen.multiline_text((GAP, place + height // 2), text, "black", font, anchor="lm")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, len(x.values))
        sheet.paste(picture, (lefts[column], tops[row]))
    return sheet


def wrap(text: str, width: int, font: Any) -> str:
    """The text in lines that are at most `width` pixels wide, as far as its words allow."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if font.getlength(longer) <= width else [lines[-1], word]
    return "\n".join(line for line in lines if line)
