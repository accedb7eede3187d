"""Samplers as tables: one row of plain numbers per call of the network.

Every explicit sampler is linear in what it remembers, so running its formulas once on *basis vectors* yields the matrix
that the step engine applies: `state' = update @ concat(state, out, reference, noise)`. The formulas are in `onestep`
and `multistep`; what samplers are called is here as well. Knows nothing of engines, prompts or pictures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clipskip.engines.shapes import REMEMBERED, SLOTS

from . import multistep, onestep, schedules
from .basis import PREVIEW, Content, Denoised, Solver, Vector, out, x
from .errors import RequestError
from .fields import did_you_mean, shown
from .schedules import SCHEDULES, NoiseModel, Sigmas, settings, sigmas


@dataclass(frozen=True)
class Row:
    """One call of the network.

    `update` is [SLOTS, REMEMBERED + 3] float64; its columns are the slots that are read, the network's guided output,
    its reference output (for the negative prompt alone, where the sampler is `unguided`), and the noise.
    `noise`: None where it needs none, () for the next draw, or the two levels between which a Brownian motion gives it.
    `inputs`: what else the step engine is fed at this call, by name.
    """

    sigma: float
    timestep: float
    c_in: float
    update: npt.NDArray[np.float64]
    noise: tuple[float, ...] | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def noisy(self) -> bool:
        """Whether this row needs noise."""
        return self.noise is not None


@dataclass(frozen=True)
class Plan:
    """The table of a request, and where it starts: `scale` times the first noise, `picture` times another's latents.

    `churn`: what the next draw is multiplied with and added to that, None where there is none. `span`: the least and
    the most noise between which rows name intervals, None where they name none.
    """

    scale: float
    churn: float | None
    rows: list[Row]
    span: tuple[float, float] | None
    picture: float = 0.0


def denoiser(model: NoiseModel) -> Denoised:
    """D(sigma) over the basis, for a network that predicts the noise or the velocity (Salimans & Ho 2022)."""
    if model.prediction == "v_prediction":
        return lambda s: x / (s**2 + 1) - out * s / math.sqrt(s**2 + 1)
    return lambda s: x - s * out


def consistency(model: NoiseModel) -> Denoised:
    """D(sigma) of a latent consistency model, which at t = 0 gives back what it is given (Luo et al. 2023, eq. 9)."""
    D = denoiser(model)

    def boundary(s: float) -> Vector:
        t = 10 * model.timestep(s)
        return np.asarray(0.25 / (t**2 + 0.25) * x + t / math.sqrt(t**2 + 0.25) * D(s))

    return boundary


@dataclass(frozen=True)
class Sampler:
    """A solver, the schedule that `automatic` means for it, and its calls of the network per step.

    `levels`: noise levels of its own for n steps, in place of a schedule's; `unit`: it starts from noise, and ends with
    a picture, of unit variance; `discard`: the next-to-last level of a schedule with one more is left out; `unguided`:
    it takes the answer to the negative prompt by itself as well; `cfg_unit`: what a cfg of 1 counts as.
    """

    name: str
    aliases: tuple[str, ...]  # k-diffusion's, ComfyUI's and diffusers' names
    solve: Solver
    order: int
    automatic: str = "uniform"
    calls_per_step: int = 1
    levels: Callable[[int, NoiseModel], Sigmas] | None = None
    unit: bool = False
    discard: bool = False
    unguided: bool = False
    cfg_unit: float = 1.0
    noise_model: type[NoiseModel] = NoiseModel
    denoiser: Callable[[NoiseModel], Denoised] = denoiser

    @property
    def settings(self) -> tuple[str, ...]:
        """The fields of a request that it takes, of those that are some samplers' alone."""
        return settings(self.solve)


SAMPLERS = (
    Sampler("DPM++ 2M", ("k_dpmpp_2m", "DPMSolverMultistepScheduler"), multistep.dpmpp_2m, 2, "karras"),
    Sampler("DPM++ SDE", ("k_dpmpp_sde", "DPMSolverSDEScheduler"), onestep.dpmpp_sde, 2, "karras", 2),
    Sampler("DPM++ 2M SDE", ("k_dpmpp_2m_sde",), multistep.dpmpp_2m_sde, 2, "exponential"),
    Sampler("DPM++ 2M SDE Heun", ("k_dpmpp_2m_sde_heun",), multistep.dpmpp_2m_sde_heun, 2, "exponential"),
    Sampler("DPM++ 2S a", ("k_dpmpp_2s_a", "dpmpp_2s_ancestral"), onestep.dpmpp_2s_ancestral, 2, "karras", 2),
    Sampler("DPM++ 3M SDE", ("k_dpmpp_3m_sde",), multistep.dpmpp_3m_sde, 3, "exponential", discard=True),
    Sampler("Euler a", ("k_euler_a", "EulerAncestralDiscreteScheduler"), onestep.euler_ancestral, 1),
    Sampler("Euler", ("k_euler", "EulerDiscreteScheduler"), onestep.euler, 1),
    Sampler("LMS", ("k_lms", "LMSDiscreteScheduler"), multistep.lms, 4),
    Sampler("Heun", ("k_heun", "HeunDiscreteScheduler"), onestep.heun, 2, calls_per_step=2),
    Sampler("DPM2", ("k_dpm_2", "KDPM2DiscreteScheduler"), onestep.dpm_2, 2, "karras", 2, discard=True),
    Sampler("DPM2 a", ("KDPM2AncestralDiscreteScheduler",), onestep.dpm_2_ancestral, 2, "karras", 2, discard=True),
    Sampler("DPM fast", ("k_dpm_fast",), onestep.dpm_fast, 3, levels=schedules.fast_levels),
    Sampler("Restart", ("restart",), onestep.restart, 2, "karras", 2),
    Sampler("DDIM", ("DDIMScheduler",), onestep.ddim, 1, levels=schedules.ddim_levels, unit=True),
    Sampler(
        "DDIM CFG++", ("ddim_cfgpp",), onestep.ddim_cfgpp, 1,
        levels=schedules.ddim_levels, unit=True, unguided=True, cfg_unit=1 / 12.5,
    ),
    Sampler("PLMS", ("PNDMScheduler",), multistep.plms, 4, levels=schedules.ddim_levels, unit=True),
    Sampler(
        "UniPC", ("uni_pc", "UniPCMultistepScheduler"), multistep.unipc, 3,
        levels=schedules.unipc_levels, unit=True, noise_model=schedules.UniPCNoise,
    ),
    Sampler("LCM", ("k_lcm", "LCMScheduler"), onestep.lcm, 1, noise_model=schedules.LCMNoise, denoiser=consistency),
    Sampler("Euler CFG++", ("euler_cfg_pp",), onestep.euler_cfgpp, 1, unguided=True),
    Sampler("Euler a CFG++", ("euler_ancestral_cfg_pp",), onestep.euler_ancestral_cfgpp, 1, unguided=True),
)  # fmt: skip

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
    **dict.fromkeys(("ddiminverse", "ddimtrailing"), "DDIM"),
    **dict.fromkeys(("dpmadaptive", "dpmad"), "DPM fast"),
    "ddpm": "Euler a", "heunpp2": "Heun", "unipcbh2": "UniPC", "tcd": "LCM",
}  # fmt: skip
CLOSEST_SCHEDULES = {
    **dict.fromkeys(("linearquadratic", "smoothstep"), "uniform"),
    "turbo": "sgm_uniform",
    "gits": "align_your_steps",
}
WHY_NOT = dict.fromkeys(("dpmadaptive", "dpmad"), "it chooses its steps by looking at the picture; ")
_BEFORE, _AFTER = re.compile(r"^(k|sample)[_ ]"), re.compile(r"(discrete)?(scheduler)?(gpu)?$")


def plan(
    sampler: Sampler,
    schedule: str,
    steps: int,
    model: NoiseModel,
    given: Mapping[str, float] = {},
    levels: Sequence[float] = (),
) -> Plan:
    """The table of a request; `given`: its fields that are some samplers' or schedules' alone; `levels`: its own."""
    model = sampler.noise_model(**asdict(model))
    return planned(sampler, visited(sampler, schedule, steps, model, given, levels), model, given)


def visited(
    sampler: Sampler, schedule: str, steps: int, model: NoiseModel, given: Mapping[str, float], levels: Sequence[float]
) -> Sigmas:
    """The falling noise levels that a request visits; `model` is the sampler's."""
    if levels:
        return np.append(np.trim_zeros(levels, "b"), 0.0)
    if sampler.levels is not None:
        return sampler.levels(steps, model)
    falling = sigmas(schedule, steps + sampler.discard, model, **given)
    return np.delete(falling, -2) if sampler.discard else falling


def planned(sampler: Sampler, visited: Sigmas, model: NoiseModel, given: Mapping[str, float]) -> Plan:
    """The table for these noise levels."""
    start, *rows = _rows(sampler, visited, model, given)
    scale = math.sqrt(visited[0] ** 2 + 1) if sampler.unit else float(visited[0])
    span = (float(visited[visited > 0].min()), float(visited[0])) if any(row.noise for row in rows) else None
    return Plan(scale, float(start.update[0, -1]) if start.noisy else None, rows, span)


def table(sampler: Sampler, sigmas: Sigmas, model: NoiseModel, **given: float) -> list[Row]:
    """One row per call of the network, for falling noise levels."""
    return _rows(sampler, sigmas, model, given)[1:]


def _rows(sampler: Sampler, sigmas: Sigmas, model: NoiseModel, given: Mapping[str, float]) -> list[Row]:
    """The table after a row of no call, which has what happens before the first one."""
    taken = {name: value for name, value in given.items() if name in sampler.settings}
    D = sampler.denoiser(model)
    rows = [Row(0.0, 0.0, 1.0, _update([x]))]
    for sigma, content, *interval in sampler.solve(sigmas, D, **taken):
        update = _update(content)
        if sigma is None:
            before = update[:, :REMEMBERED] @ rows[-1].update[:REMEMBERED]
            before[:, -1] += update[:, -1]
            before[PREVIEW] = rows[-1].update[PREVIEW]
            rows[-1] = replace(rows[-1], update=before, noise=())
            continue
        update[PREVIEW] = D(sigma)
        between = tuple(map(float, interval[0])) if interval else ()
        noise = between if update[:, -1].any() else None
        rows.append(Row(float(sigma), model.timestep(sigma), 1 / math.sqrt(sigma**2 + 1), update, noise))
    if sampler.unit:
        rows[-1].update[0] /= math.sqrt(sigmas[-1] ** 2 + 1)
    return rows


def _update(content: Content) -> npt.NDArray[np.float64]:
    update = np.zeros((SLOTS, REMEMBERED + 3))
    update[: len(content)] = content
    return update


def sampler_named(name: str) -> Sampler:
    """The sampler that has this name here or in another program. RequestError, with the closest one."""
    samplers = {sampler.name: sampler for sampler in SAMPLERS}
    aliases = {_sampler_key(alias): sampler.name for sampler in SAMPLERS for alias in sampler.aliases}
    return samplers[choice("sampler", name, samplers, aliases, CLOSEST_SAMPLERS)]


def schedule_named(name: str) -> str:
    """The schedule, or `automatic`, that has this name here or in another program. RequestError as above."""
    return choice("schedule", name, ("automatic", *SCHEDULES), SCHEDULE_ALIASES, CLOSEST_SCHEDULES)


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
