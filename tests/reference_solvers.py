"""Noise schedules and samplers written from the papers, in float64: what the runtime's tables must reproduce.

Points live in sigma space (x = signal + sigma * noise) as numpy arrays; a sigma may be one number or one per image,
shaped to broadcast. Knows nothing of networks, prompts or of how the runtime writes a sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Denoiser = Callable[[Array, Array], Array]  # (x, sigma) -> the clean picture it expects; one model call
Noise = Callable[[], Array]  # fresh unit normal noise in the shape of x
Solver = Callable[[Denoiser, Array, Array, Noise], Array]  # (denoiser, x at sigmas[0], sigmas, noise) -> x at 0

STEPS = [1, 2, 3, 5, 20, 150]

_mixing = np.random.default_rng(1).normal(size=(6, 6)) / 2


def toy_network(x: Array, timestep: float) -> Array:
    """Smooth, nonlinear, and sensitive to the fraction of a timestep."""
    return np.tanh(x @ _mixing + np.sin(timestep / 50)) + 0.1 * x


def start(steps: int) -> tuple[Array, Array]:
    """The first noise of unit variance, and what the steps draw."""
    random = np.random.default_rng(steps)
    return random.normal(size=(1, 6)), random.normal(size=(3 * steps + 3, 1, 6))


@dataclass(frozen=True)
class Diffusion:
    """The noise levels a model was trained at, and what its network predicts ("epsilon" or "v_prediction")."""

    levels: Array
    prediction: str = "epsilon"

    @classmethod
    def scaled_linear(cls, first: float, last: float, steps: int, prediction: str = "epsilon") -> Diffusion:
        """Stable Diffusion's betas: linear in their square roots."""
        kept = np.cumprod(1 - np.linspace(first**0.5, last**0.5, steps) ** 2)
        return cls(np.sqrt((1 - kept) / kept), prediction)

    def sigma(self, timestep: Array) -> Array:
        """The noise level at a fractional timestep: log-linear between the trained ones."""
        return np.exp(np.interp(timestep, np.arange(self.levels.size), np.log(self.levels)))

    def timestep(self, sigma: Array) -> Array:
        """The fractional timestep of a noise level."""
        return np.interp(np.log(sigma), np.log(self.levels), np.arange(self.levels.size))

    def denoised(self, x: Array, sigma: Array, output: Array) -> Array:
        """The clean picture behind the network's output at x / sqrt(sigma^2 + 1)."""
        if self.prediction == "epsilon":
            return x - sigma * output
        return x / (sigma**2 + 1) - output * sigma / np.sqrt(sigma**2 + 1)  # Salimans and Ho 2022, v = alpha e - s x0


def uniform(model: Diffusion, n: int) -> Array:
    """Evenly spaced timesteps, both ends included."""
    return np.append(model.sigma(np.linspace(model.levels.size - 1, 0, n)), 0.0)


def sgm_uniform(model: Diffusion, n: int) -> Array:
    """Evenly spaced timesteps without the last: the step that would start there goes to 0 from further up."""
    return np.append(model.sigma(np.linspace(model.levels.size - 1, 0, n + 1)[:-1]), 0.0)


def karras(model: Diffusion, n: int) -> Array:
    """Karras et al. 2022, equation 5, rho = 7."""
    low, high = model.levels[0] ** (1 / 7), model.levels[-1] ** (1 / 7)
    return np.append((high + np.linspace(0, 1, n) * (low - high)) ** 7, 0.0)


def exponential(model: Diffusion, n: int) -> Array:
    """Evenly spaced logarithms of sigma."""
    return np.append(np.exp(np.linspace(np.log(model.levels[-1]), np.log(model.levels[0]), n)), 0.0)


def ddim_levels(model: Diffusion, n: int) -> Array:
    """The noise levels that AUTOMATIC1111's DDIM visits: its loop goes down to, but not into, the first timestep."""
    count = model.levels.size
    timesteps = [min(t + 1, count - 1) for t in range(0, count, count // n)]
    return model.levels[timesteps[::-1]]


SCHEDULES: dict[str, Callable[[Diffusion, int], Array]] = {
    "uniform": uniform,
    "karras": karras,
    "exponential": exponential,
    "sgm_uniform": sgm_uniform,
}


def euler(denoise: Denoiser, x: Array, sigmas: Array, noise: Noise) -> Array:
    """The probability-flow ODE dx/dsigma = (x - D(x)) / sigma of Karras et al. 2022, first order."""
    for s, s_next in pairwise(sigmas):
        x = x + (s_next - s) * (x - denoise(x, s)) / s
    return x


def heun(denoise: Denoiser, x: Array, sigmas: Array, noise: Noise) -> Array:
    """Karras et al. 2022, algorithm 1: the trapezoid rule, and Euler where the step ends at 0."""
    for s, s_next in pairwise(sigmas):
        d = (x - denoise(x, s)) / s
        x_next = x + (s_next - s) * d
        if np.all(s_next > 0):
            d_next = (x_next - denoise(x_next, s_next)) / s_next
            x_next = x + (s_next - s) * (d + d_next) / 2
        x = x_next
    return x


def euler_ancestral(denoise: Denoiser, x: Array, sigmas: Array, noise: Noise) -> Array:
    """DDPM's own transition (Ho et al. 2020, equation 7) as an Euler step below the target and noise up to it."""
    for s, s_next in pairwise(sigmas):
        up = np.sqrt(s_next**2 * (s**2 - s_next**2) / s**2)
        down = s_next**2 / s
        x = x + (down - s) * (x - denoise(x, s)) / s
        if np.all(s_next > 0):
            x = x + up * noise()
    return x


def ddim(denoise: Denoiser, x: Array, sigmas: Array, noise: Noise) -> Array:
    """Song et al. 2021, equation 12 with eta 0, in its own variables: z = sqrt(abar) x, abar = 1/(1 + sigma^2).

    Here x is already z, and so is what it ends with.
    """
    abar = 1 / (1 + sigmas**2)
    z = x
    for a, a_next, s in zip(abar[:-1], abar[1:], sigmas[:-1], strict=True):
        x0 = denoise(z / np.sqrt(a), s)
        e = (z - np.sqrt(a) * x0) / np.sqrt(1 - a)
        z = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next) * e
    return z


def _half_log_snr(sigmas: Array) -> Array:
    """lambda of Lu et al. 2022; infinite at sigma 0."""
    with np.errstate(divide="ignore"):
        return -np.log(sigmas)


def dpmpp_2m(denoise: Denoiser, x: Array, sigmas: Array, noise: Noise) -> Array:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2; first order on the first step and on the step to 0."""
    alpha = 1 / np.sqrt(1 + sigmas**2)
    std, lam = sigmas * alpha, _half_log_snr(sigmas)
    z, before = alpha[0] * x, None
    for i in range(1, len(sigmas)):
        x0 = denoise(z / alpha[i - 1], sigmas[i - 1])
        h = lam[i] - lam[i - 1]
        d = x0
        if before is not None and np.all(np.isfinite(h)):
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        z = std[i] / std[i - 1] * z - alpha[i] * (np.exp(-h) - 1) * d
        before = x0
    return z / alpha[-1]


def dpmpp_2m_sde(denoise: Denoiser, x: Array, sigmas: Array, noise: Noise) -> Array:
    """SDE-DPM-Solver++(2M), Lu et al. 2022b, section 5 and appendix B.4 (midpoint form, eta 1)."""
    alpha = 1 / np.sqrt(1 + sigmas**2)
    std, lam = sigmas * alpha, _half_log_snr(sigmas)
    z, before = alpha[0] * x, None
    for i in range(1, len(sigmas)):
        x0 = denoise(z / alpha[i - 1], sigmas[i - 1])
        h = lam[i] - lam[i - 1]
        z = std[i] / std[i - 1] * np.exp(-h) * z + alpha[i] * (1 - np.exp(-2 * h)) * x0
        if np.all(np.isfinite(h)):
            if before is not None:
                r = (lam[i - 1] - lam[i - 2]) / h
                z = z + alpha[i] * (1 - np.exp(-2 * h)) / (2 * r) * (x0 - before)
            z = z + std[i] * np.sqrt(1 - np.exp(-2 * h)) * noise()
        before = x0
    return z / alpha[-1]


def plms(denoise: Denoiser, x: Array, sigmas: Array, noise: Noise) -> Array:
    """Liu et al. 2022, equations 11 and 12, in the variables of `ddim`; the first step is the mean of two slopes."""
    abar = 1 / (1 + sigmas**2)
    z, es = x, list[Array]()

    def slope(z: Array, i: int) -> Array:
        return (z - np.sqrt(abar[i]) * denoise(z / np.sqrt(abar[i]), sigmas[i])) / np.sqrt(1 - abar[i])

    def transfer(z: Array, e: Array, i: int) -> Array:
        x0 = (z - np.sqrt(1 - abar[i]) * e) / np.sqrt(abar[i])
        return np.sqrt(abar[i + 1]) * x0 + np.sqrt(1 - abar[i + 1]) * e

    for i in range(len(sigmas) - 1):
        e = slope(z, i)
        es.append(e)
        if i == 0:
            mean = (e + slope(transfer(z, e, i), i + 1)) / 2
        elif i == 1:
            mean = 3 / 2 * e - es[-2] / 2
        elif i == 2:
            mean = 23 / 12 * e - 16 / 12 * es[-2] + 5 / 12 * es[-3]
        else:
            mean = 55 / 24 * e - 59 / 24 * es[-2] + 37 / 24 * es[-3] - 9 / 24 * es[-4]
        z = transfer(z, mean, i)
    return z


def restart(denoise: Denoiser, x: Array, sigmas: Array, noise: Noise) -> Array:
    """Xu et al. 2023, algorithm 1, over Heun's steps, with AUTOMATIC1111's choices of interval, steps and repeats."""

    def ramp(first: float, last: float, count: int) -> list[float]:
        return [(first ** (1 / 7) * (1 - i / count) + last ** (1 / 7) * i / count) ** 7 for i in range(count)] + [last]

    n = len(sigmas) - 1
    if n < 20:
        return heun(denoise, x, sigmas, noise)
    again, repeats = (9, 1) if n < 36 else (n // 4, 2)
    levels = [*ramp(sigmas[0], sigmas[-2], n - again * repeats - 1), 0.0]
    low = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.1))
    high = min(range(len(levels)), key=lambda i: abs(levels[i] - 2))
    x = heun(denoise, x, np.array(levels[: low + 1]), noise)
    for _ in range(repeats if high < low else 0):
        x = x + np.sqrt(levels[high] ** 2 - levels[low] ** 2) * noise()
        x = heun(denoise, x, np.array(ramp(levels[high], levels[low], again)), noise)
    return heun(denoise, x, np.array(levels[low:]), noise)


def cfgpp(denoise: Denoiser, unguided: Denoiser, z: Array, sigmas: Array, eta: float, noise: Noise) -> Array:
    """Chung et al. 2024, algorithm 2, with Song et al. 2021's fresh noise (equation 16), in the variables of `ddim`.

    The picture is the guided answer's, and the noise that is left in it the unguided one's.
    """
    abar = 1 / (1 + sigmas**2)
    for a, a_next, s in zip(abar[:-1], abar[1:], sigmas[:-1], strict=True):
        x0, x0_unguided = denoise(z / np.sqrt(a), s), unguided(z / np.sqrt(a), s)
        e_unguided = (z - np.sqrt(a) * x0_unguided) / np.sqrt(1 - a)
        spread = eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
        z = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next - spread**2) * e_unguided
        if spread > 0:
            z = z + spread * noise()
    return z


SOLVERS: dict[str, Solver] = {
    "Euler": euler,
    "Euler a": euler_ancestral,
    "Heun": heun,
    "DDIM": ddim,
    "PLMS": plms,
    "Restart": restart,
    "DPM++ 2M": dpmpp_2m,
    "DPM++ 2M SDE": dpmpp_2m_sde,
}
