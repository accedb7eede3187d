"""What samplers and schedules are called, here and in other programs, and which of them a request means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from .errors import RequestError
from .fields import did_you_mean, shown
from .request import OWN, Request
from .samplers import SAMPLERS, Sampler
from .schedules import SCHEDULES, NoiseModel, settings

# Names that other programs use for the same things, and what comes closest to those that are missing here; samplers'
# after `_sampler_key`, schedules' after `_key`.
SCHEDULE_ALIASES = {
    "sgm": "sgm_uniform", "ka": "karras", "k": "karras", "discrete": "uniform", "default": "automatic",
    "ddimuniform": "ddim", "ays": "align_your_steps", "aligned": "align_your_steps",
}  # fmt: skip
CLOSEST_SAMPLERS = {
    **dict.fromkeys(("dpmsolver", "deis", "deismultistep", "resmultistep", "dpm2mv2"), "DPM++ 2M"),
    **dict.fromkeys(("dpm2s", "dpmsolversinglestep"), "DPM++ 2S a"),
    **dict.fromkeys(("ipndm", "ipndmv"), "PLMS"),
    **dict.fromkeys(("ddiminverse", "ddimtrailing", "ddimcfg"), "DDIM"),
    "dpmadaptive": "DPM fast",
    "dpmad": "DPM fast",
    "ddpm": "Euler a",
    "heunpp2": "Heun",
    "unipcbh2": "UniPC",
    "tcd": "LCM",
}
CLOSEST_SCHEDULES = {
    **dict.fromkeys(("linearquadratic", "smoothstep"), "uniform"),
    "turbo": "sgm_uniform",
    "gits": "align_your_steps",
}
WHY_NOT = {
    "dpmadaptive": "it chooses its steps by looking at the picture; ",
    "ddimcfg": "it needs the network's answer to the negative prompt by itself, which the engines do not give; ",
}
MOST_LEVELS, LEAST_LEVEL, LARGEST_LEVEL = 10_000, 0.0001, 10_000
_BEFORE, _AFTER = re.compile(r"^(k|sample)[_ ]"), re.compile(r"(discrete)?(scheduler)?(gpu)?$")


def sampler_and_schedule(request: Request, noise: NoiseModel) -> tuple[Request, Sampler, list[str]]:
    """The request with its schedule by name and nothing that has no effect; its sampler; and what the result says.

    A sampler's name may end in its schedule's, as in "DPM++ 2M Karras"; an explicit schedule must agree with it.
    """
    name, suffix = split_schedule(request.sampler)
    samplers = {sampler.name: sampler for sampler in SAMPLERS}
    aliases = {_sampler_key(alias): sampler.name for sampler in SAMPLERS for alias in sampler.aliases}
    sampler = samplers[choice("sampler", name, samplers, aliases, CLOSEST_SAMPLERS)]
    schedules = ("automatic", *SCHEDULES)
    schedule, suffix = (
        choice("schedule", name, schedules, SCHEDULE_ALIASES, CLOSEST_SCHEDULES)
        for name in (request.schedule, suffix or "automatic")
    )
    if schedule not in (suffix, "automatic") and suffix != "automatic":
        message = f"sampler {request.sampler!r} names the schedule {suffix}, and schedule says {schedule}"
        raise RequestError(message, field="schedule", hint="give one of them")
    schedule = suffix if schedule == "automatic" else schedule
    request = replace(request, sampler=sampler.name, schedule=schedule)
    request, notes = _levels(request, sampler, noise)
    unused = [name for name in OWN if getattr(request, name) is not None and name not in _taken(request, sampler)]
    notes += [f"{name} is not used by {sampler.name} with schedule {request.schedule}" for name in unused]
    dropped: dict[str, Any] = dict.fromkeys(unused)
    return replace(request, **dropped), sampler, notes


def _taken(request: Request, sampler: Sampler) -> tuple[str, ...]:
    own = sampler.levels is not None or request.sigmas is not None
    return sampler.settings if own else (*sampler.settings, *settings(SCHEDULES[request.schedule]))


def _levels(request: Request, sampler: Sampler, noise: NoiseModel) -> tuple[Request, list[str]]:
    """The request with what says its noise levels checked, and only that; and what the result says."""
    given = request.schedule if request.schedule not in ("automatic", sampler.automatic) else None
    schedule = given or sampler.automatic
    if sampler.levels is None:
        own = sampler.noise_model(noise.beta_start, noise.beta_end, noise.steps)
        low, high = request.sigma_min or own.sigma_min, request.sigma_max or own.sigma_max
        if low >= high:
            field = "sigma_max" if request.sigma_min is None else "sigma_min"
            raise RequestError(f"sigma_min {low:.6g} must be below sigma_max {high:.6g}", field=field)
        if request.sigmas is None:
            return replace(request, schedule=schedule), []
        levels = _falling(request.sigmas)
        notes = [f"sigmas has the noise levels: schedule {given} is not used"] if given else []
        return replace(request, schedule=sampler.automatic, sigmas=levels, steps=len(levels)), notes
    most = noise.steps if sampler.unit else request.steps
    least = 1 if len(sampler.levels(1, noise)) > 1 else 2
    if not least <= request.steps <= most:
        message = f"steps must be {least}..{most} for {sampler.name}, not {request.steps}"
        raise RequestError(message, field="steps")
    unused = [f"schedule {given}"] * bool(given) + ["sigmas"] * bool(request.sigmas)
    notes = [f"{sampler.name} has timesteps of its own: {each} is not used" for each in unused]
    return replace(request, schedule=sampler.automatic, sigmas=None), notes


def _falling(sigmas: tuple[float, ...]) -> tuple[float, ...]:
    """The noise levels that a request lists, without a last 0. RequestError for what no sampler can visit."""
    levels = sigmas[:-1] if sigmas and sigmas[-1] == 0 else sigmas
    falling = all(high > low for high, low in pairwise(levels))
    if not (falling and 1 <= len(levels) <= MOST_LEVELS and levels[-1] >= LEAST_LEVEL and levels[0] <= LARGEST_LEVEL):
        message = f"sigmas must be 1 to {MOST_LEVELS} falling numbers, {LEAST_LEVEL} to {LARGEST_LEVEL}, not"
        raise RequestError(f"{message} {shown(sigmas)}", field="sigmas", hint="0 may follow as the last one")
    return levels


def split_schedule(sampler: str) -> tuple[str, str | None]:
    """A sampler's name as programs before A1111 1.9 write it, without its schedule's; and that, if it has one."""
    keys = {*map(_key, SCHEDULES), *SCHEDULE_ALIASES, *CLOSEST_SCHEDULES} - {"ddim"}  # that is a sampler's as well
    for count in (3, 2, 1):
        words = sampler.replace("_", " ").rsplit(None, count)
        if len(words) > count and _key("".join(words[1:])) in keys:
            return words[0], " ".join(words[1:])
    return sampler, None


def choice(
    field: str, value: str, valid: Iterable[str], aliases: Mapping[str, str] = {}, closest: Mapping[str, str] = {}
) -> str:
    """The name among `valid` that `value` means. RequestError, with the closest one."""
    by_key, key = {_key(name): name for name in valid}, _sampler_key(value) if field == "sampler" else _key(value)
    if found := by_key.get(key, aliases.get(key)):
        return found
    message = f"{field} must be one of {', '.join(by_key.values())}; not {shown(value)}"
    if key in closest:
        raise RequestError(message, field=field, hint=f"{WHY_NOT.get(key, '')}{closest[key]!r} is the closest one")
    raise RequestError(message, field=field, hint=did_you_mean(key, by_key, 0.5))


def _sampler_key(name: str) -> str:
    """A1111's name without case, spaces and punctuation, for k-diffusion's, ComfyUI's and diffusers' as well."""
    key = _AFTER.sub("", _key(_BEFORE.sub("", name.lower())))
    return key.replace("dpmpp", "dpm").replace("ancestral", "a")


def _key(name: str) -> str:
    """Names are matched without case, spaces or punctuation."""
    return "".join(c for c in name.lower() if c.isalnum())
