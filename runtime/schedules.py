"""Noise levels: from a model's training noise to the decreasing sigmas that a sampler visits.

Sigma space is that of Karras et al. 2022 ("Elucidating the Design Space of Diffusion-Based Generative Models"):
x = x0 + sigma * noise. Knows nothing of samplers, networks or pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Sigmas = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NoiseModel:
    """The noise that a model was trained on: `steps` levels between two betas, linear in their square root."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    prediction: str = "epsilon"

    @cached_property
    def log_sigmas(self) -> Sigmas:
        """log sigma(t) at t = 0..steps-1, with sigma(t) = sqrt((1 - abar) / abar)."""
        betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2
        abar = np.cumprod(1 - betas)
        return np.asarray(np.log((1 - abar) / abar) / 2)

    def sigma(self, t: Sigmas) -> Sigmas:
        """Sigma at fractional timesteps, log-linear between the trained ones (k-diffusion's `t_to_sigma`)."""
        return np.exp(np.interp(t, np.arange(self.steps), self.log_sigmas))

    def timestep(self, sigma: float) -> float:
        """The fractional timestep of a sigma, clamped to the trained range."""
        return float(np.interp(np.log(sigma), self.log_sigmas, np.arange(self.steps)))

    @property
    def sigma_min(self) -> float:
        return float(np.exp(self.log_sigmas[0]))

    @property
    def sigma_max(self) -> float:
        return float(np.exp(self.log_sigmas[-1]))


def uniform(n: int, model: NoiseModel) -> Sigmas:
    """Equal distances in time from the last trained timestep to the first (k-diffusion's `get_sigmas`)."""
    return model.sigma(np.linspace(model.steps - 1, 0, n))


def karras(n: int, model: NoiseModel, rho: float = 7.0) -> Sigmas:
    """Karras et al. 2022, eq. 5: equal distances in sigma^(1/rho)."""
    low, high = model.sigma_min ** (1 / rho), model.sigma_max ** (1 / rho)
    return np.asarray(np.linspace(high, low, n) ** rho if n > 1 else [model.sigma_max])


def exponential(n: int, model: NoiseModel) -> Sigmas:
    """Equal distances in log sigma."""
    return np.exp(np.linspace(np.log(model.sigma_max), np.log(model.sigma_min), n))


def sgm_uniform(n: int, model: NoiseModel) -> Sigmas:
    """As `uniform` with one step more, whose last level (the least noise) is left out (Stability's sgm)."""
    return model.sigma(np.linspace(model.steps - 1, 0, n + 1)[:-1])


def ddim_levels(n: int, model: NoiseModel) -> Sigmas:
    """The levels of DDIM's timesteps in A1111 (and CompVis): every (steps // n)-th from 1 on, the last one first.

    There may be more or fewer of them than n, and each but the last is a call: n = 30 gives 30 calls, n = 20 gives 19.
    """
    timesteps = np.arange(0, model.steps, model.steps // n) + 1
    return model.sigma(np.minimum(timesteps, model.steps - 1)[::-1])


SCHEDULES: dict[str, Callable[[int, NoiseModel], Sigmas]] = {
    "uniform": uniform,
    "karras": karras,
    "exponential": exponential,
    "sgm_uniform": sgm_uniform,
}


def sigmas(schedule: str, n: int, model: NoiseModel) -> Sigmas:
    """The n + 1 decreasing noise levels of n steps under a schedule of `SCHEDULES`; the last one is 0."""
    return np.append(SCHEDULES[schedule](n, model), 0.0)
