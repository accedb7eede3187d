"""AUTOMATIC1111's text about a picture, its "infotext": written for a resolved request, and taken apart.

Knows its layout, also as other programs and people change it, and not what its settings mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from clipskip.engines.manifest import ModelFacts

from .fields import parse, written
from .request import FIELDS, Request

NEGATIVE = "Negative prompt:"
FEWEST = 3  # pairs in a line of settings
DIGEST = 12  # hexadecimal digits of a textual inversion's SHA-256, as A1111 writes it

_QUOTED = set(',:\n"')
_CAPITALS = {"sgm": "SGM", "kl": "KL", "ddim": "DDIM"}
_JSON = json.JSONDecoder(parse_int=str, parse_float=str, strict=False)
_NAME = re.compile(r" {0,9}([^\W\d_][\w /.()+-]{0,60}?) {0,3}: {0,3}")
_COMMON = "(?:sampler|schedule type|cfg scale|seed|size|model hash|model|clip skip) {0,3}: {0,3}[^,:]{0,80}, {0,3}"
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


def write(request: Request, model: ModelFacts, inversions: Mapping[str, str]) -> str:
    """A1111's text (1.10) for one picture of a resolved request; as there, defaults are left out from subseed on.

    `inversions`: the names and SHA-256 of the textual inversions that the prompts used.
    """
    plain = {name: (field.infotext, written(getattr(request, name))) for name, field in FIELDS.items()}
    schedule = " ".join(_CAPITALS.get(word, word.capitalize()) for word in request.schedule.split("_"))
    settings = [plain["steps"], ("Sampler", request.sampler), ("Schedule type", schedule), plain["cfg"], plain["seed"]]
    settings += [("Size", f"{request.width}x{request.height}"), ("Model hash", digests(model)[0][:10])]
    left_out = {"steps", "cfg", "seed"} | {name for name in FIELDS if getattr(request, name) == FIELDS[name].default}
    left_out |= set() if request.subseed_strength else {"subseed"}
    left_out |= {"clip_skip"} if request.clip_skip == 1 else set()
    left_out |= {"negative_clip_skip"} if request.negative_clip_skip == request.clip_skip else set()
    rest = [plain[name] for name, field in FIELDS.items() if field.infotext and name not in left_out]
    hashes = ", ".join(f"{bare(name)}: {digest[:DIGEST]}" for name, digest in inversions.items())
    rest += [("RNG", request.rng.upper()), *([("TI hashes", hashes)] if hashes else []), ("Version", "clipskip")]
    quoted = [
        f"{name}: {json.dumps(text, ensure_ascii=False) if set(text) & _QUOTED else text}"
        for name, text in [*settings, ("Model", model.name), *rest]
    ]
    lines = [request.prompt, *([f"{NEGATIVE} {request.negative_prompt}"] if request.negative_prompt else [])]
    return "\n".join([*lines, ", ".join(quoted)]).strip()


def digests(model: ModelFacts) -> list[str]:
    """The SHA-256 that may name the model: first the one that is written, then those of its files."""
    sources = list(model.sources.values())
    return sources if len(sources) == 1 else [model.model_sha256, *sources]


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
        line = lines[index].replace("|", ",") if (barred := _BARS.search(lines[index])) else lines[index]
        within = _WITHIN.search(line)
        for start in (0, within.start()) if within else (0,):
            settings = _settings(line, start)
            steps = next((value for name, value in settings.items() if key(name) == "steps"), "")
            if len(settings) >= FEWEST and not isinstance(parse(steps), str):
                prompt, negative = _prompts([*lines[:index], line[:start].strip()] if start else lines[:index])
                return Infotext(prompt.removeprefix("Prompt:").lstrip() if barred else prompt, negative, settings)
    return None


def key(name: str) -> str:
    """What names of settings are compared by: programs differ in case, and some write underscores."""
    return " ".join(name.lower().replace("_", " ").split())


def _prompts(lines: list[str]) -> tuple[str, str]:
    """The prompt and the negative prompt, in the lines before the settings."""
    first = next((i for i, line in enumerate(lines) if _NEGATIVE.match(line)), len(lines))
    if first == len(lines) and lines and (within := _NEGATIVE.search(lines[-1])):
        lines = [*lines[:-1], lines[-1][: within.start()].strip(), lines[-1][within.start() :]]
        first = len(lines) - 1
    negative = (line[match.end() :].strip() if (match := _NEGATIVE.match(line)) else line for line in lines[first:])
    return "\n".join(lines[:first]), "\n".join(negative)


def _settings(line: str, start: int) -> dict[str, str]:
    """The `Name: value` pairs from here on, of equal names the first; none where something else comes first."""
    pairs: list[tuple[str, list[str]]] = []
    while start < len(line):
        name = _NAME.match(line, start)
        value, end = _value(line, name.end() if name else start)
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


def _value(line: str, start: int) -> tuple[str, int]:
    """The value at `start`, and where it ends. JSON is taken whole, and a JSON string without its quotes."""
    if line.startswith(('"', "[", "{"), start):
        with suppress(ValueError, RecursionError):
            value, end = _JSON.raw_decode(line, start)
            if (rest := _END.match(line, end)) is not None:
                return (value if isinstance(value, str) else line[start:end]), rest.end()
    end = line.find(",", start)
    end = len(line) if end < 0 else end
    return line[start:end].strip(), end
