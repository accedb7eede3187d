"""What a user asks for: one immutable value. Knows its own fields and defaults, and nothing of models or engines."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

from clipskip.engines import strict

from . import clip_skip, scalars
from .errors import ManifestError, RequestError


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture, or `batch` pictures that differ only in their seed. Conventions are AUTOMATIC1111's (1.10).

    prompt, negative_prompt: up to 64 KiB each, in the grammar of `clipskip.prompt`; the negative without AND.
    clip_skip: 1 (all layers) to layers + 1 (embeddings only); None is the model's recommended value. A fraction counts
        as the whole number below it. clip_skip_diffusers is the same counted from 0; never both.
    negative_clip_skip: a depth for the negative prompt alone; None is the prompt's.
    seed: 0..2^64-1; None and -1 draw one. Image i of a batch has seed + i and noise of its own.
    subseed, subseed_strength: how far (0..1) the first noise lies on the way to another seed's; then a batch counts
        the subseed instead.
    steps: 1..1000. cfg: the guidance scale, 0..100; at 1 and below the network runs once per image, and the negative
        prompt is not used (unless AND needs it).
    sampler, schedule: names of `samplers.SAMPLERS` and `schedules.SCHEDULES` without regard to case, spaces and
        punctuation; "automatic" is the sampler's own schedule, and "DPM++ 2M Karras" names both.
    width, height: pixels, multiples of 64 that the engines were built for; None is the model's own size.
    batch: 1..100. rng: "cpu" (PyTorch's generator) or "nv" (CUDA's).
    emphasis: "Original", "No norm", "Ignore" or "None". comma_backtrack: 0..74 tokens.
    compat: "a1111" reads an ending `: weight` without AND too, as A1111 does.

    Types are checked by `check_types`, ranges when the request meets a model (`resolve`): RequestError names the field.
    """

    prompt: str
    negative_prompt: str = ""
    clip_skip: int | float | None = None
    clip_skip_diffusers: int | float | None = None
    negative_clip_skip: int | float | None = None
    seed: int | None = None
    subseed: int | None = None
    subseed_strength: float = 0.0
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "DPM++ 2M"
    schedule: str = "automatic"
    width: int | None = None
    height: int | None = None
    batch: int = 1
    rng: str = "cpu"
    emphasis: str = "Original"
    comma_backtrack: int = 20
    compat: str | None = None

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, Any]) -> Request:
        """A request from JSON text, or from an object already parsed; only `prompt` must be there.

        Raises RequestError for what is no JSON object, for unknown or repeated fields, NaN, Infinity and wrong types.
        """
        given = source if isinstance(source, Mapping) else _parse(source)
        for name in given:
            if name not in DEFAULTS:
                raise unknown_field(str(name))
        if "prompt" not in given:
            raise RequestError("the field 'prompt' is missing", field="prompt")
        return check_types(cls(**given))

    @classmethod
    def from_text(cls, given: Mapping[str, str], base: Request | None = None) -> Request:
        """A request from fields whose values were typed, as on a command line: numbers are plain ASCII decimals.

        What is not given is as in `base`, or has its default. A new clip skip replaces the base's in either numbering,
        and that of a negative prompt which followed it.
        """
        typed = {name: _typed(name, value) for name, value in given.items()}
        return cls.from_json(typed if base is None else {**_inherited(base, typed), **typed})

    def to_json(self) -> str:
        """The request as a JSON object in ASCII, every field included; `from_json` reads it back."""
        return json.dumps(asdict(check_types(self)))


DEFAULTS = {field.name: None if field.default is MISSING else field.default for field in fields(Request)}

# Names that other programs and `/render` use for the same fields.
ALIASES = {
    "guidance": "cfg",
    "guidance_scale": "cfg",
    "negative": "negative_prompt",
    "neg_clip_skip": "negative_clip_skip",
    "num_inference_steps": "steps",
    "scheduler": "schedule",
    "batch_size": "batch",
    "variation_seed": "subseed",
    "variation_strength": "subseed_strength",
}


def check_types(request: Request) -> Request:
    """The request with plain Python numbers, and with the default for every None; RequestError for a wrong type."""
    return replace(request, **{name: _checked(name, getattr(request, name)) for name in DEFAULTS})


def unknown_field(name: str) -> RequestError:
    """The RequestError for a field that Request does not have, with the closest one as the hint."""
    return unknown("field", name, {each: each for each in DEFAULTS} | ALIASES)


def unknown(kind: str, name: str, known: Mapping[str, str]) -> RequestError:
    """The RequestError for a name that is not among `known`; the closest one's value is the hint."""
    close = difflib.get_close_matches(name[:100].lower(), known, n=1)
    names = ", ".join(dict.fromkeys(known.values()))
    hint = f"did you mean {known[close[0]]!r}?" if close else f"known: {names}"
    return RequestError(f"unknown {kind} {scalars.shown(name)}", field=name, hint=hint)


def _checked(name: str, value: object) -> Any:
    default = DEFAULTS[name]
    if value is None and name != "prompt":
        return default
    return _CHECKS[name](name, value)


def _inherited(base: Request, given: Mapping[str, object]) -> dict[str, object]:
    if not {"clip_skip", "clip_skip_diffusers"} & given.keys():
        return asdict(base)
    negative = None if base.negative_clip_skip == base.clip_skip else base.negative_clip_skip
    return asdict(replace(base, clip_skip=None, clip_skip_diffusers=None, negative_clip_skip=negative))


def _typed(name: str, value: str) -> object:
    return value if takes_text(name) else scalars.parse(value)


def takes_text(name: str) -> bool:
    """Whether a field holds text; the others hold numbers. An unknown field counts as text, to be refused by name."""
    return _CHECKS.get(name, _text) is _text


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a string, not {scalars.shown(value)}", field=name)
    return str(value)


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "prompt": _text,
    "negative_prompt": _text,
    "clip_skip": clip_skip.check,
    "clip_skip_diffusers": clip_skip.check,
    "negative_clip_skip": clip_skip.check,
    "seed": scalars.whole,
    "subseed": scalars.whole,
    "subseed_strength": scalars.finite,
    "steps": scalars.whole,
    "cfg": scalars.finite,
    "sampler": _text,
    "schedule": _text,
    "width": scalars.whole,
    "height": scalars.whole,
    "batch": scalars.whole,
    "rng": _text,
    "emphasis": _text,
    "comma_backtrack": scalars.whole,
    "compat": _text,
}


def _parse(source: str | bytes) -> Mapping[str, Any]:
    if not isinstance(source, (str, bytes)):
        raise RequestError(f"a request in JSON must be text or an object, not {scalars.shown(source)}")
    try:
        found = strict.parse(source if isinstance(source, bytes) else source.encode("utf-8", "surrogatepass"))
    except ManifestError as error:
        raise RequestError(f"the request is not a JSON object: {error.message[:200]}", field=error.field) from error
    if not isinstance(found, dict):
        raise RequestError(f"the request must be a JSON object, not {scalars.shown(found)}")
    return found
