"""A1111's `parameters` text: how pictures carry their settings from program to program.

Written as A1111 1.10 writes it; read from its pictures of any version. It is ambiguous where a prompt contains lines
that look like it: `metadata` keeps the truth elsewhere. Knows nothing of image files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from clipskip.engines.manifest import ModelFacts

from . import scalars
from .errors import CheckpointError
from .request import Request

NEGATIVE = "Negative prompt:"

# Settings whose text is a field's value as it stands.
_FIELDS = {
    "Steps": "steps",
    "CFG scale": "cfg",
    "Seed": "seed",
    "Variation seed": "subseed",
    "Variation seed strength": "subseed_strength",
    "Clip skip": "clip_skip",
    "Negative clip skip": "negative_clip_skip",
    "Emphasis": "emphasis",
}
_OTHERS = ("Size", "Sampler", "Schedule type", "RNG")
_RNGS = {"cpu": "cpu", "nv": "nv", "gpu": "nv", "cuda": "nv"}
_SCHEDULES_IN_NAMES = {"karras", "exponential", "polyexponential"}
_CAPITALS = {"sgm": "SGM", "kl": "KL", "ddim": "DDIM"}
_SETTING = re.compile(r'(?:^|,) *([A-Za-z][\w /-]{0,60}): *("(?:[^"\\]|\\.)*"(?= *(?:,|$))|[^,]*)')


def write(request: Request, model: ModelFacts) -> str:
    """The text for one picture: a resolved request, with its own seed and every default filled in."""
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"{NEGATIVE} {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in _settings(request, model)))
    return "\n".join(lines).strip()


def read(text: str) -> Request:
    """The request that a `parameters` text means, as far as clipskip has such settings; others are ignored.

    A missing `Clip skip` is 1. A missing `RNG` is a GPU's (as in A1111), so "nv". A DPM sampler without a schedule is
    from before A1111 1.9 and ran on the uniform one. Raises CheckpointError if there is no line of settings, and
    RequestError for values of a wrong type.
    """
    lines = [line.strip() for line in text.strip().split("\n")]
    last = max((i for i, line in enumerate(lines) if line.startswith("Steps:")), default=None)
    if last is None:
        raise CheckpointError("the text `parameters` has no line of settings (Steps: ..., Sampler: ...)")
    written = dict(_SETTING.findall(lines[last]))
    found = {name: _unquoted(written[name].strip()) for name in (*_FIELDS, *_OTHERS) if name in written}
    prompt, negative = _prompts(lines[:last])
    fields = {"prompt": prompt, "negative_prompt": negative, "clip_skip": "1"}
    fields |= {field: found[name] for name, field in _FIELDS.items() if name in found}
    fields |= dict(_size(found)) | dict(_sampling(found))
    fields["rng"] = _RNGS.get(found.get("RNG", "GPU").lower(), "cpu")
    return Request.from_text(fields)


def _settings(request: Request, model: ModelFacts) -> Iterable[tuple[str, object]]:
    sources = list(model.sources.values())
    yield "Steps", request.steps
    yield "Sampler", request.sampler
    yield "Schedule type", " ".join(_CAPITALS.get(word, word.capitalize()) for word in request.schedule.split("_"))
    yield "CFG scale", scalars.written(request.cfg)
    yield "Seed", request.seed
    yield "Size", f"{request.width}x{request.height}"
    yield "Model hash", (sources[0] if len(sources) == 1 else model.model_sha256)[:10]
    yield "Model", model.name
    if request.subseed_strength:
        yield "Variation seed", request.subseed
        yield "Variation seed strength", scalars.written(request.subseed_strength)
    if request.clip_skip is not None and request.clip_skip > 1:
        yield "Clip skip", request.clip_skip
    if request.negative_clip_skip not in (None, request.clip_skip):
        yield "Negative clip skip", request.negative_clip_skip
    yield "RNG", request.rng.upper()
    if request.emphasis != "Original":
        yield "Emphasis", request.emphasis
    yield "Version", "clipskip"


def _prompts(lines: Iterable[str]) -> tuple[str, str]:
    prompt: list[str] = []
    negative: list[str] = []
    current = prompt
    for line in lines:
        if line.startswith(NEGATIVE):
            current, line = negative, line.removeprefix(NEGATIVE).strip()
        current.append(line)
    return "\n".join(prompt), "\n".join(negative)


def _size(found: dict[str, str]) -> Iterable[tuple[str, str]]:
    if "Size" in found:
        width, _, height = found["Size"].partition("x")
        yield from (("width", width), ("height", height))


def _sampling(found: dict[str, str]) -> Iterable[tuple[str, str]]:
    """Sampler and schedule; versions before 1.9 wrote the schedule at the end of the sampler's name."""
    sampler, schedule = found.get("Sampler"), found.get("Schedule type")
    if sampler is None:
        return
    name, _, last = sampler.rpartition(" ")
    if schedule is None and name and last.lower() in _SCHEDULES_IN_NAMES:
        sampler, schedule = name, last
    if schedule is None:
        schedule = "uniform" if sampler.lower().startswith("dpm") else "automatic"
    yield "sampler", sampler
    yield "schedule", "_".join(schedule.lower().split())


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
