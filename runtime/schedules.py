"""Noise levels: from a model's training noise to the decreasing sigmas that a sampler visits.

Sigma space is that of Karras et al. 2022 ("Elucidating the Design Space of Diffusion-Based Generative Models"):
x = x0 + sigma * noise. Knows nothing of samplers, networks or pictures.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Sigmas = npt.NDArray[np.float64]
LEAST = 4.8973451890853435e-08  # abar of the last level that has no signal: there sigma is about 4519


@dataclass(frozen=True)
class NoiseModel:
    """The noise that a model was trained on: `steps` levels between two betas, linear in their square root.

    `zero_snr`: sqrt(abar) is shifted and scaled so that it ends at 0 and begins as it did (Lin et al. 2023, "Common
    Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1); the last level is not 0, but A1111's LEAST.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    prediction: str = "epsilon"
    zero_snr: bool = False

    @cached_property
    def log_sigmas(self) -> Sigmas:
        """log sigma(t) at t = 0..steps-1, with sigma(t) = sqrt((1 - abar) / abar)."""
        betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2
        abar = np.cumprod(1 - betas)
        if self.zero_snr:
            first, last = abar[0] ** 0.5, abar[-1] ** 0.5
            abar = ((abar**0.5 - last) * first / (first - last)) ** 2
            abar[-1] = LEAST
        return np.asarray(np.log((1 - abar) / abar) / 2)

    @cached_property
    def timesteps(self) -> Sigmas:
        """The timesteps of the known levels, rising."""
        return np.arange(float(self.steps))

    def sigma(self, t: float | Sigmas) -> Sigmas:
        """Sigma at fractional timesteps, log-linear between the trained ones (k-diffusion's `t_to_sigma`)."""
        return np.exp(np.interp(t, self.timesteps, self.log_sigmas))

    def timestep(self, sigma: float) -> float:
        """The fractional timestep of a sigma, clamped to the trained range."""
        return float(np.interp(np.log(sigma), self.log_sigmas, self.timesteps))

    @property
    def sigma_min(self) -> float:
        return float(np.exp(self.log_sigmas[0]))

    @property
    def sigma_max(self) -> float:
        return float(np.exp(self.log_sigmas[-1]))


class UniPCNoise(NoiseModel):
    """The same noise as UniPC has it: log alpha is linear between trained timesteps, alpha^2 = 1 / (1 + sigma^2)."""

    @cached_property
    def _log_alphas(self) -> Sigmas:
        return np.asarray(-np.log1p(np.exp(2 * self.log_sigmas)) / 2)

    def sigma(self, t: float | Sigmas) -> Sigmas:
        return np.asarray(np.sqrt(np.expm1(-2 * np.interp(t, self.timesteps, self._log_alphas))))

    def timestep(self, sigma: float) -> float:
        return float(np.interp(np.log1p(sigma**2) / 2, -self._log_alphas, self.timesteps))


class LCMNoise(NoiseModel):
    """Of the same noise the levels that a latent consistency model was distilled at: every 20th, the last included."""

    @cached_property
    def log_sigmas(self) -> Sigmas:
        return super().log_sigmas[self._every - 1 :: self._every]

    @cached_property
    def timesteps(self) -> Sigmas:
        return super().timesteps[self._every - 1 :: self._every]

    @property
    def _every(self) -> int:
        return max(self.steps // 50, 1)

    def timestep(self, sigma: float) -> float:
        """The timestep of the nearest level."""
        return float(self.timesteps[np.argmin(np.abs(self.log_sigmas - np.log(sigma)))])


def uniform(n: int, model: NoiseModel) -> Sigmas:
    """Equal distances in time from the last trained timestep to the first (k-diffusion's `get_sigmas`)."""
    return model.sigma(np.linspace(model.timesteps[-1], model.timesteps[0], n))


def normal(n: int, model: NoiseModel, sigma_min: float, sigma_max: float) -> Sigmas:
    """Equal distances in time between two levels (ComfyUI's `normal`)."""
    return model.sigma(np.linspace(model.timestep(sigma_max), model.timestep(sigma_min), n))


def sgm_uniform(n: int, model: NoiseModel, sigma_min: float, sigma_max: float) -> Sigmas:
    """As `normal` with one step more, whose last level (the least noise) is left out (Stability's sgm)."""
    return np.asarray(normal(n + 1, model, sigma_min, sigma_max)[:-1])


def karras(n: int, model: NoiseModel, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Sigmas:
    """Equal distances in sigma^(1/rho) (Karras et al. 2022, eq. 5)."""
    return np.asarray(np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n) ** rho)


def exponential(n: int, model: NoiseModel, sigma_min: float, sigma_max: float) -> Sigmas:
    """Equal distances in log sigma (k-diffusion)."""
    return np.asarray(np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), n)))


def polyexponential(n: int, model: NoiseModel, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Sigmas:
    """Distances in log sigma that shrink with the power rho (k-diffusion)."""
    low, high = np.log(sigma_min), np.log(sigma_max)
    return np.asarray(np.exp(low + np.linspace(1, 0, n) ** rho * (high - low)))


def kl_optimal(n: int, model: NoiseModel, sigma_min: float, sigma_max: float) -> Sigmas:
    """n equal distances in arctan sigma: it ends at sigma_min and not at 0 (Sabour et al. 2024, theorem 3.1)."""
    return np.asarray(np.tan(np.linspace(np.arctan(sigma_max), np.arctan(sigma_min), n + 1)))


def align_your_steps(n: int, model: NoiseModel) -> Sigmas:
    """Eleven levels that suit SD 1.5, log-linear between them (Sabour et al. 2024); n = 1 has the last alone."""
    known = [0.029, 0.152, 0.399, 0.652, 0.963, 1.396, 1.886, 2.697, 3.861, 6.475, 14.615]
    return np.asarray(np.exp(np.interp(np.linspace(0, 10, n), np.arange(11), np.log(known)))[::-1])


def simple(n: int, model: NoiseModel) -> Sigmas:
    """Every (steps / n)-th of the trained levels, from the last one down (ComfyUI)."""
    known = model.log_sigmas
    return np.asarray(np.exp(known[len(known) - 1 - (np.arange(n) * (len(known) / n)).astype(int)]))


def ddim(n: int, model: NoiseModel) -> Sigmas:
    """Every (steps // n)-th of the trained levels from the second one on: more or fewer than n (ComfyUI)."""
    return np.exp(model.log_sigmas[1 :: max(len(model.log_sigmas) // n, 1)][::-1])


def beta(n: int, model: NoiseModel, sigma_min: float, sigma_max: float) -> Sigmas:
    """Quantiles of a beta distribution with both parameters 0.6, between the two levels (Lee et al. 2024; A1111)."""
    q = np.linspace(1, 0, n)
    low = beta_quantiles(np.minimum(q, 1 - q), 0.6)
    return np.asarray(sigma_min + np.where(q > 0.5, 1 - low, low) * (sigma_max - sigma_min))


def beta_quantiles(q: Sigmas, a: float) -> Sigmas:
    """Where a beta distribution with both parameters `a` has the mass q <= 1/2 below it, by bisection.

    The mass below x is x^a (1 - x)^a F(2a, 1; a + 1; x) / (a B(a, a)) (DLMF 8.17.8); 60 terms of F, as x <= 1/2.
    """
    k = np.arange(1, 60)
    terms = np.cumprod(np.append(1, (2 * a + k - 1) / (a + k)))[::-1] / (a * math.gamma(a) ** 2 / math.gamma(2 * a))
    low, high = np.zeros_like(q), np.full_like(q, 0.5)
    for _ in range(60):
        x = (low + high) / 2
        below = (x * (1 - x)) ** a * np.polyval(terms, x) < q
        low, high = np.where(below, x, low), np.where(below, high, x)
    return np.asarray((low + high) / 2)


def ddim_levels(n: int, model: NoiseModel) -> Sigmas:
    """The levels of DDIM's timesteps in A1111 (and CompVis): every (steps // n)-th from 1 on, the last one first.

    There may be more or fewer of them than n, and each but the last is a call: n = 30 gives 30 calls, n = 20 gives 19.
    """
    timesteps = np.arange(0, model.steps, model.steps // n) + 1
    return model.sigma(np.minimum(timesteps, model.steps - 1)[::-1])


def unipc_levels(n: int, model: NoiseModel) -> Sigmas:
    """Equal distances in time, as many as `ddim_levels` has levels (A1111's skip type `time_uniform`)."""
    return model.sigma(np.linspace(model.steps - 1, 0, len(range(0, model.steps, model.steps // n)) + 1))


def fast_levels(n: int, model: NoiseModel) -> Sigmas:
    """From the most noise to the least, n calls apart: DPM fast places its own steps between them."""
    return exponential(n + 1, model, model.sigma_min, model.sigma_max)


SCHEDULES: dict[str, Callable[..., Sigmas]] = {
    formula.__name__: formula
    for formula in (
        uniform, karras, exponential, polyexponential, sgm_uniform,
        kl_optimal, align_your_steps, simple, normal, ddim, beta,
    )
}  # fmt: skip


def settings(formula: Callable[..., object]) -> tuple[str, ...]:
    """The fields of a request that the formula of a schedule or sampler takes: its parameters after the first two."""
    return tuple(inspect.signature(formula).parameters)[2:]


def sigmas(schedule: str, n: int, model: NoiseModel, **given: float) -> Sigmas:
    """The falling noise levels of n steps under a schedule of `SCHEDULES`, and 0; kl_optimal's end at sigma_min.

    `given`: sigma_min, sigma_max and rho, of which a schedule takes what it has. What `simple` repeats where n is above
    the number of the model's levels is left out.
    """
    formula = SCHEDULES[schedule]
    limits = {"sigma_min": model.sigma_min, "sigma_max": model.sigma_max, **given}
    levels = formula(n, model, **{name: limits[name] for name in settings(formula) if name in limits})
    levels = levels if schedule == "kl_optimal" else np.append(levels, 0.0)
    return np.asarray(levels[np.append(True, np.diff(levels) < 0)])
