"""AUTOMATIC1111's text about a picture, its "infotext", taken apart; `metadata` writes it.

Knows its layout, also as other programs and people change it, and not what its settings mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .fields import parse

FEWEST = 3  # pairs in a line of settings
LONGEST_JSON = 1 << 16  # characters
DIGEST = 12  # hexadecimal digits of a textual inversion's SHA-256, as A1111 writes it

_JSON = json.JSONDecoder(parse_int=str, parse_float=str, strict=False)
_NAME = re.compile(r" {0,9}([^\W\d_][\w /.()+-]{0,60}?) {0,3}: {0,3}")
_COMMON = "(?:sampler|schedule type|cfg scale|seed|size|model|model hash|clip skip)[ ]?: {0,3}[^,: ][^,:]{0,79}, {0,3}"
_STEPS = "steps {0,3}: {0,3}[0-9]+(?:[.]0)? {0,3}(?:,|$)"
_WITHIN = re.compile(rf"(?<![\w-])(?:{_COMMON}){{0,20}}{_STEPS}", re.IGNORECASE)  # settings in the prompts' own line
_NEGATIVE = re.compile(r"(?<!\w)negative prompt *:", re.IGNORECASE)
_END = re.compile(r" *(?=,|$)")
_BARS = re.compile(r"(?<!\w)steps: [0-9]+ \|", re.IGNORECASE)  # SD.Next's, until 2023


@dataclass(frozen=True)
class Infotext:
    """What the text says; settings by name in their order and spelling, quotes removed; of equal names the first."""

    prompt: str
    negative_prompt: str
    settings: Mapping[str, str]

    @property
    def program(self) -> str:
        """The program that wrote the text, with its version; A1111 where nothing is said."""
        said = {key(name): value for name, value in self.settings.items()}
        version = said.get("version", "")
        unnamed = {"v": "AUTOMATIC1111", "": "AUTOMATIC1111", "f": "Forge"} if not version[1:2].isalpha() else {}
        return f"{said.get('app', unnamed.get(version[:1], ''))} {version}".strip()[:60]


def bare(name: str) -> str:
    """The name of a textual inversion as it stands in a list of hashes."""
    return name.replace(":", "").replace(",", "").strip().lower()


def read(text: str) -> Infotext | None:
    """The parts of a text; None where it has no line of settings.

    That is the last line with three `Name: value` pairs, one of them a number of steps. What stands before it in the
    same line, where line breaks were lost, is prompt; lines after it are what extensions write.
    """
    lines = [line.strip() for line in text.strip("\0\ufeff \t\r\n").split("\n")]
    for index in reversed(range(len(lines))):
        if "steps" not in lines[index].lower():
            continue
        line = lines[index].replace("|", ",") if (barred := _BARS.search(lines[index])) else lines[index]
        within = _WITHIN.search(line)
        for start in (0, within.start()) if within else (0,):
            settings = _settings(line, start)
            steps = next((value for name, value in settings.items() if key(name) == "steps"), "")
            if len(settings) >= FEWEST and not isinstance(parse(steps), str):
                prompt, negative = _prompts(lines[:index], line[:start].strip())
                return Infotext(prompt.removeprefix("Prompt:").lstrip() if barred else prompt, negative, settings)
    return None


def key(name: str) -> str:
    """What names of settings are compared by: programs differ in case, and some write underscores."""
    return " ".join(name.lower().replace("_", " ").split())


def _prompts(lines: list[str], flat: str) -> tuple[str, str]:
    """The prompt and the negative prompt, in the lines before the settings and in what is before them in their line."""
    lines = [*lines, flat] if flat else lines
    first = next((i for i, line in enumerate(lines) if _NEGATIVE.match(line)), len(lines))
    if flat and first == len(lines) and (within := _NEGATIVE.search(flat)):
        lines[-1:] = [flat[: within.start()].strip(), flat[within.start() :]]
        first = len(lines) - 1
    negative = (line[match.end() :].strip() if (match := _NEGATIVE.match(line)) else line for line in lines[first:])
    return "\n".join(lines[:first]), "\n".join(negative)


def _settings(line: str, start: int) -> dict[str, str]:
    """The `Name: value` pairs from here on, of equal names the first; none where something else comes first."""
    pairs: list[tuple[str, list[str]]] = []
    json_from = 0  # where JSON is sought again: what was read of broken JSON is read once
    while start < len(line):
        name = _NAME.match(line, start)
        value, end, json_from = _value(line, name.end() if name else start, json_from)
        if name:
            pairs.append((name[1], []))
        elif not pairs:
            return {}
        if name or value:  # a value may have commas
            pairs[-1][1].append(value)
        start = end + 1
    if pairs and pairs[0][0].lower().endswith("negative prompt"):
        return {}
    found: dict[str, tuple[str, str]] = {}
    for each, values in pairs:
        found.setdefault(key(each), (each, ", ".join(values)))
    return dict(found.values())


def _value(line: str, start: int, json_from: int) -> tuple[str, int, int]:
    """The value at `start`, where it ends, and from where on JSON may be sought.

    JSON is taken whole, and a JSON string without its quotes.
    """
    if start >= json_from and line.startswith(('"', "[", "{"), start):
        try:
            value, length = _JSON.raw_decode(line[start : start + LONGEST_JSON])  # an error counts lines up to itself
            json_from = start + length
            if (rest := _END.match(line, json_from)) is not None:
                return (value if isinstance(value, str) else line[start:json_from]), rest.end(), json_from
        except json.JSONDecodeError as error:
            json_from = start + error.pos
        except RecursionError:
            json_from = len(line)
    end = line.find(",", start)
    end = len(line) if end < 0 else end
    return line[start:end].strip(), end, json_from
