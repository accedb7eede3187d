"""What counts as a number in a request, the same for Python, JSON, the command line and `/render`.

Knows nothing of the fields that take numbers, nor of their ranges.
"""

from __future__ import annotations

import math
import re
import reprlib
from decimal import Decimal

from .errors import RequestError

LONGEST = 400  # characters: the longest float64 without an exponent has 327
EXACT = 2**53  # below it a float without a fraction may be written, and read, as an integer
LARGEST = 2**128  # integers beyond it are no setting of anything, and cannot be printed at any length

_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII)


def parse(text: str) -> int | float | str:
    """The number that `text` is, if it is plain ASCII decimals such as "2", "-1" or "7.5"; else `text` itself.

    The text that comes back is then refused by the same check, in the same words, as a string given from Python.
    """
    found = _DECIMAL.fullmatch(text) if len(text) <= LONGEST else None
    if found is None:
        return text
    return float(text) if found[1] else int(text)


def written(value: float) -> str:
    """Plain decimals that `parse` reads as this number; a float without a fraction has none there."""
    if isinstance(value, int):
        return str(value)
    if value.is_integer():
        return f"{int(value)}{'' if abs(value) < EXACT else '.0'}"
    return f"{Decimal(repr(float(value))):f}"


def plain(value: object) -> int | float | None:
    """`value` as Python's int or float; None if it is no finite number. Booleans and strings are none.

    numpy's numbers are numbers; they are known by their `ndim` of 0, because numpy itself loads too slowly for this.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value) if abs(value) < LARGEST else None
    return float(value) if isinstance(value, float) and math.isfinite(value) else None


def whole(field: str, value: object) -> int:
    """`value` as an int. RequestError if it is anything else, fractions included."""
    number = plain(value)
    if not isinstance(number, int):
        raise RequestError(f"{field} must be a whole number, not {shown(value)}", field=field)
    return number


def finite(field: str, value: object) -> float:
    """`value` as a float. RequestError if it is no finite number."""
    number = plain(value)
    if number is None:
        raise RequestError(f"{field} must be a finite number, not {shown(value)}", field=field)
    return float(number)


def shown(value: object) -> str:
    """`value` as an error message shows it: short, printable, and with its quotes if it is a string."""
    if isinstance(value, int) and abs(value) >= LARGEST:
        return f"an integer of {value.bit_length()} bits"
    return reprlib.repr(value)


def ranges(field: str, text: str) -> list[int]:
    """The whole numbers in a list such as "1,2,5-8", in order and each once. RequestError if it is no such list."""
    found: set[int] = set()
    for item in text.split(","):
        low, dash, high = item.strip().partition("-")
        first = whole(field, parse(low))
        last = whole(field, parse(high)) if dash else first
        if not 0 <= first <= last < 1000:
            raise RequestError(f"{field} {item.strip()!r} is no range of numbers below 1000", field=field)
        found.update(range(first, last + 1))
    return sorted(found)
