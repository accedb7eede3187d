"""How a picture is made from another one: the passes of a request, how far each is noised, and what is kept of it.

AUTOMATIC1111's rules (1.10). Knows nothing of files and engines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from .basis import out, x
from .samplers import Plan, Sampler, plan, planned, visited
from .schedules import NoiseModel, Sigmas, ddim_levels, sigmas, unipc_levels

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pass:
    """One way down the noise levels, at a size in pixels: the last `made` of `steps` steps.

    `strength`: 1 starts from noise alone, 0 has no step.
    """

    width: int
    height: int
    steps: int
    made: int
    strength: float = 1.0

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"


def steps_at(strength: float, steps: int, exact: bool) -> tuple[int, int]:
    """How many steps the schedule has, and how many of them, its last ones, are made.

    That is one more than the strength's part of the steps; `exact`: `steps` are made, of a schedule that is longer.
    """
    if strength in (0, 1):
        return steps, int(strength) * steps
    part = min(strength, 0.999)
    return (int(steps / part), steps) if exact else (steps, int(part * steps) + 1)


def plan_of(
    run: Pass, sampler: Sampler, schedule: str, model: NoiseModel, given: Mapping[str, float], levels: Sequence[float]
) -> Plan:
    """The table of one pass; arguments as `samplers.plan` has them."""
    if run.strength == 1:
        return plan(sampler, schedule, run.steps, model, given, levels)
    if run.strength == 0:
        return Plan(0.0, None, [], None, 1.0)
    model = sampler.noise_model(**asdict(model))
    if sampler.unit:
        return _from_timestep(run, sampler, model, given)
    own = sampler.levels is not None  # DPM fast, which places steps of its own between the ends of this schedule
    whole = sigmas("uniform", run.steps, model) if own else visited(sampler, schedule, run.steps, model, given, levels)
    left = whole[min(run.steps - run.made, len(whole) - 2) :]
    made = planned(sampler, np.geomspace(left[0], left[-2], len(left)) if own else left, model, given)
    span = made.span and (float(whole[whole > 0].min()), float(whole[0]))  # one motion for all strengths
    return replace(made, span=span, picture=1.0)


def _from_timestep(run: Pass, sampler: Sampler, model: NoiseModel, given: Mapping[str, float]) -> Plan:
    """For DDIM and its kin: the picture is noised one timestep above the first call's, and both have unit variance."""
    known, count = ddim_levels(run.steps, model), max(run.made - 1, 2)
    left: Sigmas = known[-count:]
    if sampler.levels is unipc_levels:
        left = model.sigma(np.linspace(model.timestep(left[0]), 0, count + 1))
    made, noised = planned(sampler, left, model, given), known[max(-count - 1, -len(known))]
    picture = made.scale / math.sqrt(noised**2 + 1)
    return replace(made, scale=float(noised * picture), picture=picture)


def masked(made: Plan, sampler: Sampler, model: NoiseModel) -> Plan:
    """The plan whose calls answer with the known latents where the mask is 0: what is denoised there is `known`."""
    D = sampler.denoiser(sampler.noise_model(**asdict(model)))
    rows = []
    for row in made.rows:
        of_x, of_out = D(row.sigma) @ x, D(row.sigma) @ out
        rows.append(replace(row, inputs={"pull": np.array([-of_x / of_out, 1 / of_out], np.float32)}))
    return replace(made, rows=rows)


def content(known: Floats, mask: Floats, noise: Floats, fill: str) -> Floats:
    """The latents that are noised: what `fill` says where the mask is 1."""
    inside = {"latent noise": noise, "latent nothing": np.zeros_like(known)}.get(fill, known)
    return np.asarray(known * (1 - mask) + inside * mask, np.float32)
