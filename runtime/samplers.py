"""Samplers as tables: one row of plain numbers per call of the network.

Every explicit sampler is linear in what it remembers, so running its formulas once on *basis vectors* yields the matrix
that the step engine applies: `state' = update @ concat(state, out, noise)`. In each function below `x` is the point the
network looks at (slot 0), `slot[k]` what an earlier row stored in slot k, `D(s)` the denoised point at noise level s,
`noise` a fresh unit normal; a yielded list names the new content of slots 0, 1, ... and unnamed slots become 0.
s and t are the noise levels before and after a step. Knows nothing of engines, prompts or pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from clipskip.engines.shapes import SLOTS

from .schedules import NoiseModel, Sigmas, ddim_levels, sigmas

Vector = npt.NDArray[np.float64]  # coefficients over the slots, the network's output and the noise
Stage = tuple[float, Sequence[Vector]]  # the noise level the network is asked at, and the new content of the slots
Denoised = Callable[[float], Vector]

_basis = np.eye(SLOTS + 2)
slot, out, noise = _basis[:SLOTS], _basis[SLOTS], _basis[SLOTS + 1]
x = slot[0]


@dataclass(frozen=True)
class Row:
    """One call of the network.

    `update` is [SLOTS, SLOTS + 2] float64; its columns are the slots, the network's guided output and the noise.
    """

    sigma: float
    timestep: float
    c_in: float
    update: npt.NDArray[np.float64]

    @property
    def noisy(self) -> bool:
        """Whether this row needs fresh noise."""
        return bool(self.update[:, -1].any())


def euler(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """Euler's method on the probability flow ODE (Karras et al. 2022, algorithm 1 without churn)."""
    for s, t in pairwise(sigmas):
        d = (x - D(s)) / s
        yield s, [x + (t - s) * d]


def euler_ancestral(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """Euler to a lower noise level, then fresh noise up to t (Song et al. 2021, eta 1; k-diffusion)."""
    for s, t in pairwise(sigmas):
        up = min(t, math.sqrt(t**2 * (s**2 - t**2) / s**2))
        down = math.sqrt(t**2 - up**2)
        d = (x - D(s)) / s
        yield s, [x + (down - s) * d + up * noise]


def ddim(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """DDIM at eta 0 (Song et al. 2020, eq. 12), divided by sqrt(abar); in this space it equals Euler's method.

    The last level is not 0: what is left is the picture, as it is at unit variance.
    """
    for s, t in pairwise(sigmas[:-1]):
        yield s, [x + (t - s) * (x - D(s)) / s]
    s, t = sigmas[-2:]
    yield s, [(x + (t - s) * (x - D(s)) / s) / math.sqrt(t**2 + 1)]


def heun(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """Heun's second-order method (Karras et al. 2022, algorithm 1): two calls a step, but one to reach 0."""
    for s, t in pairwise(sigmas):
        d = (x - D(s)) / s
        guess = x + (t - s) * d
        if t == 0:
            yield s, [guess]
            return
        yield s, [guess, x, d]
        base, slope = slot[1], slot[2]
        yield t, [base + (t - s) * (slope + (x - D(t)) / t) / 2]


def dpmpp_2m(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), in k-diffusion's sigma space; the last step is of first order."""
    last = None
    for s, t in pairwise(sigmas):
        h = math.log(s / t) if t else math.inf
        old = slot[1]
        D_ = D(s) if last is None or not t else D(s) + (D(s) - old) * h / (2 * last)
        yield s, [t / s * x - math.expm1(-h) * D_, D(s)]
        last = h


def dpmpp_2m_sde(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022), midpoint form, eta 1, as k-diffusion's `dpmpp_2m_sde`."""
    last = None
    for s, t in pairwise(sigmas):
        if t == 0:
            yield s, [D(s)]
            return
        h = math.log(s / t)
        old = slot[1]
        D_ = D(s) if last is None else D(s) + (D(s) - old) * h / (2 * last)
        fresh = t * math.sqrt(-math.expm1(-2 * h)) * noise
        yield s, [t / s * math.exp(-h) * x - math.expm1(-2 * h) * D_ + fresh, D(s)]
        last = h


@dataclass(frozen=True)
class Sampler:
    """A solver, the schedule that `automatic` means for it, and its calls of the network per step.

    `levels`: noise levels of its own for n steps, in place of a schedule's; it starts from noise of unit variance.
    """

    name: str
    solve: Callable[[Sigmas, Denoised], Iterator[Stage]]
    automatic: str = "uniform"
    calls_per_step: int = 1
    levels: Callable[[int, NoiseModel], Sigmas] | None = None


SAMPLERS = (
    Sampler("DPM++ 2M", dpmpp_2m, automatic="karras"),
    Sampler("DPM++ 2M SDE", dpmpp_2m_sde, automatic="exponential"),
    Sampler("Euler a", euler_ancestral),
    Sampler("Euler", euler),
    Sampler("Heun", heun, calls_per_step=2),
    Sampler("DDIM", ddim, levels=ddim_levels),
)


def denoiser(prediction: str) -> Denoised:
    """D(sigma) over the basis, for a network that predicts the noise or the velocity (Salimans & Ho 2022)."""
    if prediction == "v_prediction":
        return lambda s: x / (s**2 + 1) - out * s / math.sqrt(s**2 + 1)
    return lambda s: x - s * out


def plan(sampler: Sampler, schedule: str, steps: int, model: NoiseModel) -> tuple[float, list[Row]]:
    """What the first noise is multiplied with, and the table of a request."""
    if sampler.levels is None:
        levels = sigmas(schedule, steps, model)
        return float(levels[0]), table(sampler, levels, model)
    levels = sampler.levels(steps, model)
    return math.sqrt(levels[0] ** 2 + 1), table(sampler, levels, model)


def table(sampler: Sampler, sigmas: Sigmas, model: NoiseModel) -> list[Row]:
    """One row per call of the network, for falling noise levels; they end in 0 unless they are the sampler's own."""
    rows = []
    for sigma, content in sampler.solve(sigmas, denoiser(model.prediction)):
        update = np.zeros((SLOTS, SLOTS + 2))
        update[: len(content)] = content
        rows.append(Row(float(sigma), model.timestep(sigma), 1 / math.sqrt(sigma**2 + 1), update))
    return rows
