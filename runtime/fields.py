"""Kinds of fields, for every front end: how a value is typed, written and refused. Not which fields there are."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from decimal import Decimal
from typing import Any

from clipskip.engines.shapes import no_clip_skip

from .errors import RequestError

SD1_LAYERS = 12
LONGEST = 400  # characters: the longest float64 without an exponent has 327
EXACT = 2**53  # below it a float without a fraction may be written, and read, as an integer
LARGEST = 2**128  # integers beyond it are no setting of anything, and cannot be printed at any length

_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII)


@dataclass(frozen=True)
class Kind:
    """A type of value."""

    what: str
    take: Callable[[object], Any]  # a value -> plain Python's, None where it is of another kind
    read: Callable[[str], object]  # what was typed -> its value, or the text itself, to be refused as any string is

    def check(self, field: str, value: object) -> Any:
        """`value` as plain Python; RequestError, in the field's name, if it is of another kind."""
        if (taken := self.take(value)) is not None:
            return taken
        if self in (CLIP_SKIP, CLIP_SKIPS):
            raise no_clip_skip(field, shown(value), SD1_LAYERS)
        raise RequestError(f"{field} must be {self.what}, not {shown(value)}", field=field)


@dataclass(frozen=True)
class Field:
    """One row of the table of fields; what has no bounds and no choices is bounded by the model, or by nothing."""

    name: str
    kind: Kind
    default: Any
    required: bool
    option: str  # on the command line; "" where it has none
    help: str  # there
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()  # what other programs and `/render` call it
    infotext: str = ""  # the setting of A1111's text that has the field's value as it stands

    @classmethod
    def of(cls, field: dataclasses.Field[Any]) -> Field:
        """The row of a dataclass's field: its kind follows from its type. What is required is no option of commands."""
        kind, required = KINDS[str(field.type).removesuffix(" | None")], field.default is MISSING
        option = "" if required else f"--{field.name.replace('_', '-')}"
        row = {"help": "", "option": option, **field.metadata}
        return cls(field.name, kind, None if required else field.default, required, **row)

    def check(self, value: object) -> Any:
        """`value` as plain Python, the default for None; RequestError for a wrong type."""
        return self.default if value is None and not self.required else self.kind.check(self.name, value)


def parse(text: str) -> int | float | str:
    """The number that `text` is, if it is plain ASCII decimals such as "2", "-1" or "7.5"; else `text` itself."""
    if len(text) > LONGEST or not (decimal := _DECIMAL.fullmatch(text)):
        return text
    return float(text) if decimal[1] else int(text)


def written(value: object) -> str:
    """The text that a kind's `read` takes for this value; a float without a fraction has none there."""
    if isinstance(value, float):
        if value.is_integer():
            return f"{int(value)}{'' if abs(value) < EXACT else '.0'}"
        return f"{Decimal(repr(float(value))):f}"
    return ",".join(map(written, value)) if isinstance(value, tuple) else str(value)


def number(value: object) -> int | float | None:
    """`value` as Python's int or float; None if it is no finite number. Booleans and strings are none."""
    value = _plain(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value) if abs(value) < LARGEST else None
    return float(value) if isinstance(value, float) and math.isfinite(value) else None


def _numbers(value: Any) -> tuple[float, ...] | None:
    """The numbers in Python's list or tuple, or in numpy's of one axis; None for all else."""
    items = value if isinstance(value, (list, tuple)) or getattr(value, "ndim", None) == 1 else [None]
    found = [number(each) for each in items]
    return None if None in found or not found else tuple(float(each) for each in found if each is not None)


def _names(value: Any) -> tuple[str, ...] | None:
    """The texts in a list, or in one that was typed, between commas; None for all else."""
    items = [each.strip() for each in value.split(",")] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(each, str) and "," not in each for each in items):
        return None
    return tuple(str(each) for each in items if each)


def _plain(value: Any) -> object:
    """numpy's scalars as Python's; they are known by their `ndim` of 0, because numpy itself loads too slowly here."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _picture(value: Any) -> str | None:
    """A path or a data URL; of a picture in memory the data URL."""
    if isinstance(value, os.PathLike):
        return value if isinstance(value := os.fspath(value), str) else None
    if not hasattr(value, "__array_interface__"):  # PIL's images have it as well
        return str(value) if isinstance(value, str) else None
    from .pictures import data_url

    return data_url(value)


TEXT = Kind("a string", lambda value: str(value) if isinstance(value, str) else None, str)
WHOLE = Kind("a whole number", lambda value: found if isinstance(found := number(value), int) else None, parse)
FRACTION = Kind("a finite number", lambda value: None if (found := number(value)) is None else float(found), parse)
FLAG = Kind(
    "true or false",
    lambda value: found if isinstance(found := _plain(value), bool) else None,
    lambda text: {"true": True, "false": False}.get(text.lower(), text),
)
CLIP_SKIP = Kind("a clip skip", number, parse)
CLIP_SKIPS = Kind(  # one, or several over the steps in the syntax of prompt editing: `[9:1:0.4]`, `[2|9]`
    "a clip skip", lambda value: value if isinstance(value, str) and "[" in value else number(value), parse
)
NUMBERS = Kind("a list of numbers", _numbers, lambda text: [parse(each.strip()) for each in text.split(",")])
NAMES = Kind("a list of names, each with its weights (name:0.8)", _names, str)
PICTURE = Kind("a picture: a path, a data URL, a PIL image of 8 bits a channel, or an array of uint8", _picture, str)
KINDS = {
    "Picture": PICTURE, "str": TEXT, "int": WHOLE, "float": FRACTION, "bool": FLAG, "tuple[float, ...]": NUMBERS,
    "tuple[str, ...]": NAMES,
    "int | float": CLIP_SKIP, "int | float | str": CLIP_SKIPS,
}  # fmt: skip


def whole_clip_skip(field: str, value: float, layers: int) -> int:
    """The clip skip, counted from 1 as in A1111, that `value` of this field means; a fraction is the number below."""
    skip = math.floor(value) + (field == "clip_skip_diffusers")
    if not 1 <= skip <= layers + 1:
        raise no_clip_skip(field, shown(value), layers)
    return skip


def shown(value: object) -> str:
    """`value` as an error message shows it: short, printable, and with its quotes if it is a string."""
    if isinstance(value, int) and abs(value) >= LARGEST:
        return f"an integer of {value.bit_length()} bits"
    return reprlib.repr(value)


def did_you_mean(name: str, known: Mapping[str, str], cutoff: float) -> str | None:
    """The hint for a name that is not among `known`: the value of the key most like it, where one is enough like it."""
    close = difflib.get_close_matches(name[:100], known, n=1, cutoff=cutoff)
    return f"did you mean {known[close[0]]!r}?" if close else None


def whole(field: str, text: str) -> int:
    """The whole number that was typed. RequestError in the field's name if it is none."""
    return int(WHOLE.check(field, parse(text)))


def at_least(field: str, value: object, low: int) -> int:
    """A whole number from `low` on. RequestError in the field's name for anything else."""
    number = int(WHOLE.check(field, value))
    if number < low:
        raise RequestError(f"{field} must be at least {low}, not {shown(value)}", field=field)
    return number


def location(field: str, value: object) -> str:
    """The path that `value` is. RequestError in the field's name for anything else, and for one with NUL."""
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or "\0" in path:
        raise RequestError(f"{field} must be a path, not {shown(value)}", field=field)
    return path


def ranges(field: str, text: str) -> list[int]:
    """The whole numbers in a list such as "1,2,5-8", in order and each once. RequestError if it is no such list."""
    numbers: set[int] = set()
    for item in text.split(","):
        low, dash, high = item.strip().partition("-")
        first, last = whole(field, low), whole(field, high if dash else low)
        if not 0 <= first <= last < 1000:
            raise RequestError(f"{field} {item.strip()!r} is no range of numbers below 1000", field=field)
        numbers.update(range(first, last + 1))
    return sorted(numbers)
