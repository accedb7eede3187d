"""Strict JSON for dataclasses: every field is there, of its own type, and nothing else is.

Knows nothing of manifests; the field annotations are the schema: `Annotated[int, range(...)]`,
`Annotated[float, Between(...)]` and `Annotated[str, "pattern"]` narrow a value, a union goes by the type that JSON
gives, and a class with `parse` is written as one string.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from clipskip.engines.errors import ManifestError

LARGEST = 1 << 20
DEEPEST = 12
LONGEST_STRING = 4096
_STRING = re.compile('"[^"]*"?')  # where nothing is escaped
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NAMES = {
    dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number", bool: "a boolean",
}  # fmt: skip


@dataclass(frozen=True)
class Between:
    """The rule that a float is above `low` and below `high`."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low < value < self.high


def parse(data: bytes, largest: int = LARGEST, outside: int = sys.maxsize) -> Any:
    """The JSON in `data`. Refuses what a careless reader accepts: a BOM, NaN, duplicate keys, great size or depth."""
    if len(data) > largest:
        raise ManifestError(f"the file is larger than {largest} bytes")
    if data.startswith(b"\xef\xbb\xbf"):
        raise ManifestError("the file starts with a byte order mark")
    try:
        text, level = data.decode("utf-8"), 0
        bare = _STRING.sub("", text.replace(r"\\", "").replace(r"\"", ""))
        if len(bare) > outside:  # numbers and brackets take many times their size in memory
            raise ManifestError(f"there are more than {outside} characters outside of strings")
        for character in bare:
            level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(character, 0)
            if level > DEEPEST:
                raise ManifestError(f"brackets are nested deeper than {DEEPEST} levels")
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError too
        raise ManifestError(f"not valid JSON ({error})") from error


def _refuse_constant(name: str) -> Any:
    raise ManifestError(f"{name} is not a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ManifestError(f"the field {key!r} is there twice", field=key)
        result[key] = value
    return result


def decode(kind: Any, value: Any, where: str, later: Mapping[str, Any] | None = None) -> Any:
    """`value`, as parsed from JSON, as a value of `kind`; ManifestError names the field that does not fit.

    `later`: fields of dataclasses that may be missing, and have their default then.
    """
    origin = get_origin(kind)
    if hasattr(kind, "parse"):
        try:
            return kind.parse(_expect(str, value, where))
        except ValueError as error:
            raise ManifestError(f"{where}: {value!r:.80} is not allowed here", field=where) from error
    if hasattr(kind, "__dataclass_fields__"):
        hints = get_type_hints(kind, include_extras=True)
        given = _expect(dict, value, where).keys()
        hints = {name: hint for name, hint in hints.items() if name in given or name not in (later or {})}
        for name in sorted(given ^ hints.keys()):
            problem = "is missing" if name in hints else "is not known"
            raise ManifestError(f"{where}: the field {name!r} {problem}", field=f"{where}.{name}")
        return kind(**{name: decode(hint, value[name], f"{where}.{name}", later) for name, hint in hints.items()})
    if origin is tuple:
        items = enumerate(_expect(list, value, where))
        return tuple(decode(get_args(kind)[0], item, f"{where}[{index}]", later) for index, item in items)
    if origin is Mapping:
        entries = _expect(dict, value, where).items()
        return {_text(key, where): decode(get_args(kind)[1], entry, f"{where}.{key}") for key, entry in entries}
    if origin in (Union, UnionType):
        members = {_written(member): member for member in get_args(kind)}
        return decode(members.get(type(value), next(iter(members.values()))), value, where)
    return _decode_scalar(kind, value, where)


def pick(kinds: Mapping[str, tuple[Any, Any]], value: Mapping[str, Any]) -> Any:
    """Fields of an object that may have others too, as attributes; of each its kind, and what it is if left out."""
    found = {name: decode(kind, value[name], name) for name, (kind, _) in kinds.items() if name in value}
    return SimpleNamespace(**{name: default for name, (_, default) in kinds.items()} | found)


def _written(kind: Any) -> Any:
    """The Python type of what JSON has for a value of this kind."""
    if hasattr(kind, "parse"):
        return str
    return list if get_origin(kind) is tuple else (get_args(kind) or (kind,))[0]


def _decode_scalar(kind: Any, value: Any, where: str) -> Any:
    kind, *rules = get_args(kind) or (kind,)  # Annotated[int, range] or Annotated[str, pattern]
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    value = _expect(kind, value, where)
    if kind is float and not math.isfinite(value):
        raise ManifestError(f"{where}: must be finite", field=where)
    if kind is str:
        _text(value, where)
    for rule in rules:
        if not (re.fullmatch(rule, value) if isinstance(rule, str) else value in rule):
            raise ManifestError(f"{where}: {value!r:.80} is not allowed here", field=where)
    return value


def _expect(kind: Any, value: Any, where: str) -> Any:
    if type(value) is not kind:  # not isinstance: True is no number here
        raise ManifestError(f"{where}: must be {_NAMES[kind]}, is {_NAMES.get(type(value), 'null')}", field=where)
    return value


def _text(value: str, where: str) -> str:
    if len(value) > LONGEST_STRING or _UNPRINTABLE.search(value):
        raise ManifestError(f"{where}: text with control characters or of more than {LONGEST_STRING}", field=where)
    return value
