"""From a request to what will be run: every default filled in, every value checked against the model.

All refusals of a request happen here or in the modules it calls, before any engine runs. Knows nothing of engines.
"""

from __future__ import annotations

import difflib
import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace

from clipskip.engines.manifest import ModelFacts

from . import clip_skip, emphasis, prompt, request, scalars
from .errors import RequestError
from .noise import LARGEST_SEED, SOURCES, image_seeds
from .request import Request
from .samplers import SAMPLERS, Sampler
from .schedules import SCHEDULES

MAX_STEPS = 1000
MAX_CFG = 100.0
MAX_BATCH = 100
MAX_PIXELS = 2048 * 2048
NETWORK_KINDS = ("lora", "lyco", "hypernet")

# Names that other programs use for the same things, after `_key`.
SAMPLER_ALIASES = {"eulerancestral": "eulera", "dpmpp2m": "dpm2m", "dpmpp2msde": "dpm2msde"}
SCHEDULE_ALIASES = {"sgm": "sgmuniform"}


@dataclass(frozen=True)
class Resolved:
    """A request without open questions. `request` is the same with every None filled in, for metadata and repeats."""

    request: Request
    seeds: tuple[tuple[int, int | None], ...]  # seed and subseed of each image
    layers: int
    negative_layers: int
    sampler: Sampler
    schedule: str
    width: int
    height: int
    notes: tuple[str, ...]

    @property
    def calls(self) -> int:
        """Network calls that prompt schedules are made for (A1111 counts calls, not steps)."""
        return self.request.steps * self.sampler.calls_per_step


def resolve(asked: Request, model: ModelFacts) -> Resolved:
    """Check every field against the model and fill in every default.

    Raises RequestError, naming the field, the value, the valid range and the closest valid choice.
    """
    asked = request.check_types(asked)
    _check_values(asked, model)
    depth = clip_skip.resolve(
        asked.clip_skip,
        asked.clip_skip_diffusers,
        asked.negative_clip_skip,
        layers=model.layers,
        recommended=model.recommended_clip_skip,
    )
    sampler, schedule = _sampler_and_schedule(asked)
    width, height = _size(asked, model)
    seed = _seed("seed", asked.seed)
    varied = asked.subseed_strength or asked.subseed is not None
    subseed = _seed("subseed", asked.subseed) if varied else None
    filled = replace(
        asked,
        clip_skip=depth.clip_skip,
        clip_skip_diffusers=None,
        negative_clip_skip=depth.negative_clip_skip,
        seed=seed,
        subseed=subseed,
        sampler=sampler.name,
        schedule=schedule,
        width=width,
        height=height,
        rng=_choice("rng", asked.rng, SOURCES),
        emphasis=_choice("emphasis", asked.emphasis, emphasis.MODES),
        compat=None if asked.compat is None else _choice("compat", asked.compat, ("a1111",)),
    )
    return Resolved(
        request=filled,
        seeds=tuple(image_seeds(seed, subseed, asked.subseed_strength, asked.batch)),
        layers=depth.layers,
        negative_layers=depth.negative_layers,
        sampler=sampler,
        schedule=schedule,
        width=width,
        height=height,
        notes=(*depth.notes, *_notes(asked)),
    )


def _check_values(asked: Request, model: ModelFacts) -> None:
    prompt.check_text(asked.prompt, "prompt")
    prompt.check_text(asked.negative_prompt, "negative_prompt")
    _check_networks(asked.prompt)
    _check_range("steps", asked.steps, 1, min(MAX_STEPS, model.train_steps))
    _check_range("cfg", asked.cfg, 0, MAX_CFG)
    _check_range("batch", asked.batch, 1, MAX_BATCH)
    _check_range("comma_backtrack", asked.comma_backtrack, 0, 74)
    _check_range("subseed_strength", asked.subseed_strength, 0, 1)


def _notes(asked: Request) -> Iterable[str]:
    if asked.cfg <= 1 and asked.negative_prompt and len(prompt.composition(asked.prompt, asked.compat)) == 1:
        yield f"the negative prompt is not used at cfg {asked.cfg:g}: guidance needs a cfg above 1"


def _check_networks(text: str) -> None:
    """A1111's `<lora:name:weight>` changes the networks; dropping it in silence would give another picture."""
    for kind, arguments in prompt.networks(text)[1]:
        if kind.lower() in NETWORK_KINDS:
            raise RequestError(
                f"the prompt asks for <{kind}:{arguments}>, and networks cannot be changed by a request",
                field="prompt",
                hint="merge it into the checkpoint before the export, and take it out of the prompt",
            )


def _check_range(field: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise RequestError(f"{field} must be {low:g}..{high:g}, not {value:g}", field=field)


def _seed(field: str, value: int | None) -> int:
    if value is None or value == -1:
        return random_seed()
    if not 0 <= value <= LARGEST_SEED:
        raise RequestError(f"{field} must be 0..2^64-1, or -1 for a random one, not {value}", field=field)
    return value


def random_seed() -> int:
    """A seed below 2^32, which other programs take too."""
    return secrets.randbelow(2**32)


def _key(name: str) -> str:
    """Names are matched without case, spaces or punctuation."""
    return "".join(c for c in name.lower() if c.isalnum())


def _choice(field: str, value: str, valid: Iterable[str], aliases: dict[str, str] | None = None) -> str:
    by_key = {_key(name): name for name in valid}
    key = _key(value)
    key = (aliases or {}).get(key, key)
    if key in by_key:
        return by_key[key]
    close = difflib.get_close_matches(key[:100], by_key, n=1, cutoff=0.5)
    hint = f"did you mean {by_key[close[0]]!r}?" if close else None
    message = f"{field} must be one of {', '.join(by_key.values())}; not {scalars.shown(value)}"
    raise RequestError(message, field=field, hint=hint)


def _sampler_and_schedule(asked: Request) -> tuple[Sampler, str]:
    """A sampler's name may end in its schedule's, as in "DPM++ 2M Karras"; an explicit schedule must agree with it."""
    samplers = {sampler.name: sampler for sampler in SAMPLERS}
    schedules = ("automatic", *SCHEDULES)
    name, suffix = _split_schedule(asked.sampler)
    if _key(asked.sampler) == "dpmadaptive":
        raise RequestError(
            "DPM adaptive chooses its steps while it runs, and every sampler here is a table made beforehand",
            field="sampler",
            hint="'DPM++ 2M' is the closest one",
        )
    sampler = samplers[_choice("sampler", name, samplers, SAMPLER_ALIASES)]
    schedule = _choice("schedule", asked.schedule, schedules, SCHEDULE_ALIASES)
    if suffix is not None:
        if schedule not in ("automatic", suffix):
            message = f"sampler {asked.sampler!r} names the schedule {suffix}, and schedule says {schedule}"
            raise RequestError(message, field="schedule", hint="give one of them")
        schedule = suffix
    return sampler, sampler.automatic if schedule == "automatic" else schedule


def _split_schedule(name: str) -> tuple[str, str | None]:
    for schedule in sorted(SCHEDULES, key=len, reverse=True):
        words = name.replace("_", " ").rsplit(None, len(schedule.split("_")))
        if len(words) > 1 and _key("".join(words[1:])) == _key(schedule):
            return words[0], schedule
    return name, None


def _size(asked: Request, model: ModelFacts) -> tuple[int, int]:
    width = model.default_size if asked.width is None else asked.width
    height = model.default_size if asked.height is None else asked.height
    for field, value in (("width", width), ("height", height)):
        _check_size(field, value, model.size_step)
    if width * height > MAX_PIXELS:
        raise RequestError(f"{width}x{height} is above the limit of {MAX_PIXELS} pixels", field="width")
    return width, height


def _check_size(field: str, value: int, step: int) -> None:
    if value > MAX_PIXELS // step:
        raise RequestError(f"{field} must be at most {MAX_PIXELS // step} pixels, not {value}", field=field)
    if value < step or value % step:
        below = max(step, value // step * step)
        near = f"{below}" if value <= step else f"{below} or {below + step}"
        raise RequestError(f"{field} must be a multiple of {step} pixels, not {value}; nearest: {near}", field=field)
