"""What a field of a request is: its kind of value, how that is typed and written, and the words that refuse the rest.

The same for Python, JSON, the command line and `/render`. Knows nothing of which fields there are.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from .errors import RequestError

SD1_LAYERS = 12
LONGEST = 400  # characters: the longest float64 without an exponent has 327
EXACT = 2**53  # below it a float without a fraction may be written, and read, as an integer
LARGEST = 2**128  # integers beyond it are no setting of anything, and cannot be printed at any length

_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII)


@dataclass(frozen=True)
class Kind:
    """A type of value: `check` makes it plain Python's or refuses it in the field's name, `read` takes what was typed.

    What `read` cannot make sense of comes back as the text that it is, for `check` to refuse in the words that a string
    from Python gets.
    """

    check: Callable[[str, object], Any]
    read: Callable[[str], object]


@dataclass(frozen=True)
class Field:
    """One row of the table of fields.

    `low` and `high` bound a number, and `choices` are the names that a text may be; a field without them is bounded by
    the model or not at all. `option` is its name on the command line ("" where it has none), `help` what is said there;
    `aliases` are names that other programs and `/render` use. `infotext` is the setting of A1111's text that has this
    field's value as it stands.
    """

    name: str
    kind: Kind
    default: Any
    required: bool
    option: str
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    infotext: str = ""

    def check(self, value: object) -> Any:
        """`value` as plain Python, the default for None; RequestError for a wrong type."""
        return self.default if value is None and not self.required else self.kind.check(self.name, value)


def parse(text: str) -> int | float | str:
    """The number that `text` is, if it is plain ASCII decimals such as "2", "-1" or "7.5"; else `text` itself."""
    found = _DECIMAL.fullmatch(text) if len(text) <= LONGEST else None
    if found is None:
        return text
    return float(text) if found[1] else int(text)


def parse_flag(text: str) -> bool | str:
    """What "true" or "false" says, in any case; else `text` itself."""
    return {"true": True, "false": False}.get(text.lower(), text)


def written(value: object) -> str:
    """The text that a kind's `read` takes for this value; a float without a fraction has none there."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if value.is_integer():
            return f"{int(value)}{'' if abs(value) < EXACT else '.0'}"
        return f"{Decimal(repr(float(value))):f}"
    return str(value)


def plain(value: object) -> object:
    """numpy's scalars as Python's; they are known by their `ndim` of 0, because numpy itself loads too slowly here."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


def number(value: object) -> int | float | None:
    """`value` as Python's int or float; None if it is no finite number. Booleans and strings are none."""
    value = plain(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value) if abs(value) < LARGEST else None
    return float(value) if isinstance(value, float) and math.isfinite(value) else None


def whole(field: str, value: object) -> int:
    """`value` as an int. RequestError if it is anything else, fractions included."""
    found = number(value)
    if not isinstance(found, int):
        raise RequestError(f"{field} must be a whole number, not {shown(value)}", field=field)
    return found


def finite(field: str, value: object) -> float:
    """`value` as a float. RequestError if it is no finite number."""
    found = number(value)
    if found is None:
        raise RequestError(f"{field} must be a finite number, not {shown(value)}", field=field)
    return float(found)


def string(field: str, value: object) -> str:
    """`value` if it is text. RequestError otherwise."""
    if not isinstance(value, str):
        raise RequestError(f"{field} must be a string, not {shown(value)}", field=field)
    return str(value)


def flag(field: str, value: object) -> bool:
    """`value` as a bool. RequestError if it is anything else, 0 and 1 included."""
    found = plain(value)
    if not isinstance(found, bool):
        raise RequestError(f"{field} must be true or false, not {shown(value)}", field=field)
    return found


def clip_skip(field: str, value: object) -> int | float:
    """`value` as a number, fractions included; RequestError in the words that a number out of range gets too."""
    found = number(value)
    if found is None:
        raise _no_clip_skip(field, value, SD1_LAYERS)
    return found


def whole_clip_skip(field: str, value: float, layers: int) -> int:
    """The clip skip, counted from 1 as in A1111, that `value` of this field means; a fraction is the number below."""
    skip = math.floor(value) + (field == "clip_skip_diffusers")
    if not 1 <= skip <= layers + 1:
        raise _no_clip_skip(field, value, layers)
    return skip


def kept_layers(skips: Iterable[int], layers: int) -> list[int]:
    """The numbers of layers that text engines for these clip skips keep. RequestError for one out of range."""
    return sorted({layers + 1 - whole_clip_skip("clip_skip", skip, layers) for skip in skips})


def _no_clip_skip(field: str, value: object, layers: int) -> RequestError:
    if field == "clip_skip_diffusers":
        first, meaning = 0, "it counts from 0 (the last layer, clip_skip 1); 1 is the penultimate (clip_skip 2)"
        hint = f"clip_skip is the same setting counted from 1: 1..{layers + 1}"
    else:
        first = 1
        meaning = "it counts from 1 (the last layer, diffusers' None or 0); 2 is the penultimate (diffusers' 1)"
        hint = f"clip_skip_diffusers takes diffusers' own numbers, 0..{layers}"
    message = f"{field} must be {first}..{layers + first}, not {shown(value)}: {meaning}"
    return RequestError(message, field=field, hint=hint)


def shown(value: object) -> str:
    """`value` as an error message shows it: short, printable, and with its quotes if it is a string."""
    if isinstance(value, int) and abs(value) >= LARGEST:
        return f"an integer of {value.bit_length()} bits"
    return reprlib.repr(value)


def ranges(field: str, text: str) -> list[int]:
    """The whole numbers in a list such as "1,2,5-8", in order and each once. RequestError if it is no such list."""
    numbers: set[int] = set()
    for item in text.split(","):
        low, dash, high = item.strip().partition("-")
        first = whole(field, parse(low))
        last = whole(field, parse(high)) if dash else first
        if not 0 <= first <= last < 1000:
            raise RequestError(f"{field} {item.strip()!r} is no range of numbers below 1000", field=field)
        numbers.update(range(first, last + 1))
    return sorted(numbers)


TEXT = Kind(string, str)
WHOLE = Kind(whole, parse)
FRACTION = Kind(finite, parse)
CLIP_SKIP = Kind(clip_skip, parse)
FLAG = Kind(flag, parse_flag)
