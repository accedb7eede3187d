"""Samplers that remember nothing from one step to the next; see `basis` for the letters.

s and t are the noise levels before and after a step.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from itertools import pairwise

import numpy as np

from .basis import Denoised, Stage, Vector, noise, slot, unguided, x
from .schedules import NoiseModel, Sigmas, karras


def euler(
    sigmas: Sigmas, D: Denoised, s_churn: float = 0, s_tmin: float = 0, s_tmax: float = 0, s_noise: float = 1
) -> Iterator[Stage]:
    """Euler's method on the probability flow ODE (Karras et al. 2022, algorithm 2 without its correction)."""
    for level, t in pairwise(sigmas):
        s = yield from churned(level, len(sigmas) - 1, s_churn, s_tmin, s_tmax, s_noise)
        d = (x - D(s)) / s
        yield s, [x + (t - s) * d]


def heun(
    sigmas: Sigmas, D: Denoised, s_churn: float = 0, s_tmin: float = 0, s_tmax: float = 0, s_noise: float = 1
) -> Iterator[Stage]:
    """Heun's second-order method (Karras et al. 2022, algorithm 2): two calls a step, but one to reach 0."""
    for level, t in pairwise(sigmas):
        s = yield from churned(level, len(sigmas) - 1, s_churn, s_tmin, s_tmax, s_noise)
        yield from heun_step(s, t, D)


def heun_step(s: float, t: float, D: Denoised) -> Iterator[Stage]:
    """One step of Heun's method."""
    d = (x - D(s)) / s
    guess = x + (t - s) * d
    if t == 0:
        yield s, [guess]
        return
    yield s, [guess, x, d]
    base, slope = slot[1], slot[2]
    yield t, [base + (t - s) * (slope + (x - D(t)) / t) / 2]


def dpm_2(
    sigmas: Sigmas, D: Denoised, s_churn: float = 0, s_tmin: float = 0, s_tmax: float = 0, s_noise: float = 1
) -> Iterator[Stage]:
    """The midpoint rule in log sigma, after DPM-Solver-2 and Karras et al. 2022 (k-diffusion)."""
    for level, t in pairwise(sigmas):
        s = yield from churned(level, len(sigmas) - 1, s_churn, s_tmin, s_tmax, s_noise)
        yield from midpoint_step(s, t, D, 0)


def midpoint_step(s: float, t: float, D: Denoised, up: float) -> Iterator[Stage]:
    """One step of the midpoint rule, then noise of level `up`; to reach 0, Euler's without any."""
    d = (x - D(s)) / s
    if t == 0:
        yield s, [x + (t - s) * d]
        return
    middle = math.sqrt(s * t)
    yield s, [x + (middle - s) * d, x]
    yield middle, [slot[1] + (t - s) * (x - D(middle)) / middle + up * noise]


def churned(
    s: float, n: int, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> Generator[Stage, None, float]:
    """Noise from level s of n up to the one that is returned (Karras et al. 2022, algorithm 2); s_tmax 0 is no limit.

    Outside the limits it is drawn as well, and multiplied by 0, for the draws of later steps are k-diffusion's.
    """
    gamma = min(s_churn / n, math.sqrt(2) - 1) if s_tmin <= s <= (s_tmax or math.inf) else 0
    up = s * (gamma + 1)
    if s_churn:
        yield None, [x + s_noise * math.sqrt(up**2 - s**2) * noise]
    return up


def ancestral(s: float, t: float, eta: float) -> tuple[float, float]:
    """The level to step down to, and that of the fresh noise which leads up to t (Song et al. 2021; k-diffusion)."""
    up = min(t, eta * math.sqrt(t**2 * (s**2 - t**2) / s**2))
    return math.sqrt(t**2 - up**2), up


def euler_ancestral(sigmas: Sigmas, D: Denoised, eta: float = 1) -> Iterator[Stage]:
    """Euler to a lower noise level, then fresh noise up to t (Song et al. 2021; k-diffusion)."""
    for s, t in pairwise(sigmas):
        down, up = ancestral(s, t, eta)
        d = (x - D(s)) / s
        yield s, [x + (down - s) * d + up * noise]


def ddim(sigmas: Sigmas, D: Denoised, eta: float = 0) -> Iterator[Stage]:
    """DDIM (Song et al. 2020, eq. 12) divided by sqrt(abar): in this space an ancestral Euler's method."""
    return euler_ancestral(sigmas, D, eta)


def euler_ancestral_cfgpp(sigmas: Sigmas, D: Denoised, eta: float = 1) -> Iterator[Stage]:
    """CFG++ (Chung et al. 2024, algorithm 2) with fresh noise: to the guided picture by the unguided answer's noise."""
    for s, t in pairwise(sigmas):
        down, up = ancestral(s, t, eta)
        yield s, [D(s) + down * (x - unguided(D(s))) / s + up * noise]


def euler_cfgpp(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """CFG++ (Chung et al. 2024, algorithm 2) over any levels; its cfg is ComfyUI's, 0 to about 2."""
    return euler_ancestral_cfgpp(sigmas, D, 0)


def ddim_cfgpp(sigmas: Sigmas, D: Denoised, eta: float = 0) -> Iterator[Stage]:
    """CFG++ (Chung et al. 2024, algorithm 2) as A1111 has it: a cfg of 12.5 is the paper's 1."""
    return euler_ancestral_cfgpp(sigmas, D, eta)


def dpm_2_ancestral(sigmas: Sigmas, D: Denoised, eta: float = 1, s_noise: float = 1) -> Iterator[Stage]:
    """DPM2 to a lower noise level, then fresh noise up to t (k-diffusion)."""
    for s, t in pairwise(sigmas):
        down, up = ancestral(s, t, eta)
        yield from midpoint_step(s, down, D, s_noise * up)


def dpmpp_2s_ancestral(sigmas: Sigmas, D: Denoised, eta: float = 1, s_noise: float = 1) -> Iterator[Stage]:
    """DPM-Solver++(2S) (Lu et al. 2022, algorithm 1) to a lower noise level, then fresh noise up to t (k-diffusion)."""
    for s, t in pairwise(sigmas):
        down, up = ancestral(s, t, eta)
        if down == 0:
            yield s, [D(s) + s_noise * up * noise]
            continue
        middle = math.sqrt(s * down)
        yield s, [middle / s * x + (1 - middle / s) * D(s), x]
        yield middle, [down / s * slot[1] + (1 - down / s) * D(middle) + s_noise * up * noise]


def dpmpp_sde(sigmas: Sigmas, D: Denoised, eta: float = 1, s_noise: float = 1) -> Iterator[Stage]:
    """SDE-DPM-Solver++ of two stages (Lu et al. 2022; k-diffusion): the first has noise as well, of the same motion."""
    for s, t in pairwise(sigmas):
        if t == 0:
            yield s, [D(s)]
            return
        middle = math.sqrt(s * t)
        down, up = ancestral(s, middle, eta)
        yield s, [down / s * x + (1 - down / s) * D(s) + s_noise * up * noise, x], (s, middle)
        down, up = ancestral(s, t, eta)
        yield middle, [down / s * slot[1] + (1 - down / s) * D(middle) + s_noise * up * noise], (s, t)


def dpm_fast(sigmas: Sigmas, D: Denoised, eta: float = 1, s_noise: float = 1) -> Iterator[Stage]:
    """DPM-Solver-fast (Lu et al. 2022a, appendix D.2): as many calls as levels, in steps of order 3 and a rest."""
    n, last = len(sigmas) - 1, float(sigmas[-1])
    m = n // 3 + 1
    orders = [3] * (m - 1) + [n % 3] if n % 3 else [3] * (m - 2) + [2, 1]
    for order, (s, t) in zip(orders, pairwise(np.geomspace(sigmas[0], last, m + 1)), strict=True):
        down = max(last, ancestral(s, t, eta)[0])
        fresh = s_noise * math.sqrt(max(t**2 - down**2, 0)) * noise
        yield from dpm_step(order, s, down, D, fresh)


def dpm_step(order: int, s: float, t: float, D: Denoised, fresh: Vector) -> Iterator[Stage]:
    """One step of DPM-Solver-1, 2 or 3 (Lu et al. 2022a, algorithms 1 and 2), with noise at its end."""
    h = math.log(s / t)
    e = (x - D(s)) / s
    if order == 1:
        yield s, [x - t * math.expm1(h) * e + fresh]
        return
    s_ = s * math.exp(-h / order)
    yield s, [x - s_ * math.expm1(h / order) * e, x, e]
    base, e = slot[1], slot[2]
    e_ = (x - D(s_)) / s_
    if order == 2:
        yield s_, [base - t * math.expm1(h) * e_ + fresh]
        return
    r = 2 * h / 3
    s__ = s * math.exp(-r)
    yield s_, [base - s__ * (math.expm1(r) * e + 2 * (math.expm1(r) / r - 1) * (e_ - e)), base, e]
    e_ = (x - D(s__)) / s__
    yield s__, [base - t * (math.expm1(h) * e + 1.5 * (math.expm1(h) / h - 1) * (e_ - e)) + fresh]


def restart(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """Heun's method that goes back up to more noise once or twice (Xu et al. 2023; A1111 has its choice of where)."""
    for s, t in pairwise(restarts(sigmas)):
        if t > s:
            yield None, [x + math.sqrt(t**2 - s**2) * noise]
        else:
            yield from heun_step(s, t, D)


def restarts(sigmas: Sigmas) -> list[float]:
    """The levels in A1111's order: from 20 steps on Karras', from 2 down to 0.1 again, in as many steps in all."""
    n = len(sigmas) - 1
    if n < 20:
        return list(sigmas)
    again, times = (n // 4, 2) if n >= 36 else (9, 1)
    levels = np.append(karras(n - again * times, NoiseModel(), sigmas[-2], sigmas[0]), 0)
    low, high = (int(np.abs(levels - near).argmin()) for near in (0.1, 2))
    if high >= low:
        return list(levels)
    repeated = [*karras(again + 1, NoiseModel(), levels[low], levels[high])[:-1], levels[low]]
    return [*levels[: low + 1], *repeated * times, *levels[low + 1 :]]


def lcm(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """Multistep consistency sampling (Luo et al. 2023, algorithm 3): each step is the picture, noised anew."""
    for s, t in pairwise(sigmas):
        yield s, [D(s) + t * noise]
