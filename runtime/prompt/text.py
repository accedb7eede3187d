"""What is done to a whole prompt before its grammar: limits, `<name:arguments>` tags, AND; and the limit on weights."""

from __future__ import annotations

import re

from ..errors import RequestError

MAX_BYTES = 64 * 1024
MAX_WEIGHT = 10.0  # beyond it vectors overflow or drown all others

_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*[-+]?(?:\d+(?:\.\d*)?|\.\d+)\s*")
_NETWORK = re.compile(r"<(\w+):([^>]+)>")


def check_text(text: object, field: str) -> str:
    """`text` if it is a string without NUL and lone surrogates, of at most 64 KiB in UTF-8. RequestError(field)."""
    if not isinstance(text, str):
        raise RequestError(f"{field} must be a string, not {type(text).__name__}", field=field)
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise RequestError(f"{field} is longer than {MAX_BYTES // 1024} KiB", field=field, hint="shorten it")
    if found := _UNUSABLE.search(text):
        what = "NUL" if found[0] == "\0" else f"a lone surrogate (U+{ord(found[0]):04X})"
        raise RequestError(f"{field} has {what} at character {found.start()}", field=field, hint="remove it")
    return text


def networks(text: str) -> tuple[str, list[tuple[str, str]]]:
    """`text` without its `<kind:arguments>` tags, and the tags as (kind, arguments): `<lora:name:0.8>` and the like."""
    end = text.rfind(">") + 1  # a tag needs one after it: else each "<a:" would search to the end of the text
    return _NETWORK.sub("", text[:end]) + text[end:], _NETWORK.findall(text[:end])


def composition(text: str, compat: str | None = None) -> list[tuple[str, float]]:
    """The parts of a prompt between the words AND, each with its weight: `a cat AND a dog :0.5`.

    A part's ending `: weight` (signed decimal, no exponent) and the whitespace before it are no part of the text.
    Without an AND the text is one part, untouched, of weight 1. `compat="a1111"` reads an ending weight there too, as
    A1111 does (`photo, 16:9` weighs 9). Raises RequestError(field="prompt") where |weight| is above 10.
    """
    parts = _AND.split(text)
    if len(parts) == 1 and compat != "a1111":
        return [(text, 1.0)]
    weighted = []
    for part in parts:
        head, colon, tail = part.rpartition(":")
        if colon and _WEIGHT.fullmatch(tail):
            weighted.append((head.rstrip(), check_weight(float(tail), part)))
        else:
            weighted.append((part.rstrip(), 1.0))
    return weighted


def check_weight(weight: float, source: str) -> float:
    """`weight` if it is usable; `source` is the text it stands in, for the message."""
    if abs(weight) <= MAX_WEIGHT:
        return weight
    excerpt = ascii(source if len(source) <= 60 else source[:60] + "...")  # on one line, safe for a terminal
    message = f"a prompt weight of {weight:.4g} is beyond {MAX_WEIGHT:g}: {excerpt}"
    hint = "weights between 0.5 and 1.5 are usual; write \\( and \\) for brackets that are text"
    raise RequestError(message, field="prompt", hint=hint)
