"""Samplers that remember the network's answers of earlier steps; see `basis` for the letters.

s and t are the noise levels before and after a step, h is log(s / t). Answers that are remembered stand in slots 1, 2,
..., the newest first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from .basis import Denoised, Stage, Vector, noise, slot, x
from .schedules import Sigmas


def lms(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """Adams-Bashforth of order 4 over levels of any distance (k-diffusion's linear multistep)."""
    for i, (s, t) in enumerate(pairwise(sigmas)):
        ds = [(x - D(s)) / s, *slot[1:4]][: i + 1]
        weights = integrals(sigmas[max(i - 3, 0) : i + 1][::-1], s, t)
        yield s, [x + np.dot(weights, ds), *ds[:3]]


def integrals(levels: Sigmas, a: float, b: float) -> Vector:
    """The integral from a to b of each Lagrange polynomial of up to 4 levels: Gauss' rule of 2 points is exact."""
    points = (a + b) / 2 + (b - a) / 2 * np.array([-1, 1]) / math.sqrt(3)
    others = [np.delete(levels, j) for j in range(len(levels))]
    values = [np.prod((points[:, None] - o) / (level - o), axis=1) for level, o in zip(levels, others, strict=True)]
    return np.asarray(np.sum(values, axis=1) * (b - a) / 2)


def plms(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """Pseudo linear multistep of order 4 (Liu et al. 2022, eq. 12), with an improved Euler step at first (CompVis)."""
    bashforth = {1: [3, -1], 2: [23, -16, 5], 3: [55, -59, 37, -9]}  # over 2, 12 and 24, which are their sums
    for i, (s, t) in enumerate(pairwise(sigmas)):
        e = (x - D(s)) / s
        if i == 0:
            yield s, [x + (t - s) * e, x, e]
            yield t, [slot[1] + (t - s) * (slot[2] + (x - D(t)) / t) / 2, slot[2]]
            continue
        weights = bashforth[min(i, 3)]
        es = [e, *slot[1:4]][: len(weights)]
        yield s, [x + (t - s) * np.dot(weights, es) / sum(weights), *es[:3]]


def dpmpp_2m(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), in k-diffusion's sigma space; the last step is of first order."""
    last = None
    for s, t in pairwise(sigmas):
        h = math.log(s / t) if t else math.inf
        old = slot[1]
        D_ = D(s) if last is None or not t else D(s) + (D(s) - old) * h / (2 * last)
        yield s, [t / s * x - math.expm1(-h) * D_, D(s)]
        last = h


def dpmpp_2m_sde(sigmas: Sigmas, D: Denoised, eta: float = 1, s_noise: float = 1) -> Iterator[Stage]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022), midpoint form (k-diffusion)."""
    return _2m_sde(sigmas, D, eta, s_noise, lambda k: -math.expm1(-k) / 2)


def dpmpp_2m_sde_heun(sigmas: Sigmas, D: Denoised, eta: float = 1, s_noise: float = 1) -> Iterator[Stage]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022), Heun's form (k-diffusion)."""
    return _2m_sde(sigmas, D, eta, s_noise, lambda k: 1 + math.expm1(-k) / k)


def _2m_sde(
    sigmas: Sigmas, D: Denoised, eta: float, s_noise: float, correction: Callable[[float], float]
) -> Iterator[Stage]:
    last = None
    for s, t in pairwise(sigmas):
        if t == 0:
            yield s, [D(s)]
            return
        h = math.log(s / t)
        k = h * (1 + eta)
        D_ = -math.expm1(-k) * D(s) + (0 if last is None else correction(k) * h / last * (D(s) - slot[1]))
        yield s, [math.exp(-k) * x + D_ + diffusion(t, h, eta) * s_noise * noise, D(s)], (s, t)
        last = h


def diffusion(t: float, h: float, eta: float) -> float:
    """The level of the noise that an SDE step of length h to level t adds."""
    return t * math.sqrt(-math.expm1(-2 * h * eta))


def dpmpp_3m_sde(sigmas: Sigmas, D: Denoised, eta: float = 1, s_noise: float = 1) -> Iterator[Stage]:
    """SDE-DPM-Solver++ with two remembered answers (k-diffusion)."""
    hs: list[float] = []
    for s, t in pairwise(sigmas):
        if t == 0:
            yield s, [D(s)]
            return
        h = math.log(s / t)
        k = h * (1 + eta)
        phi2 = math.expm1(-k) / k + 1
        phi3 = phi2 / k - 0.5
        x_ = math.exp(-k) * x - math.expm1(-k) * D(s)
        if hs:
            slope = (D(s) - slot[1]) * h / hs[-1]
            x_ = x_ + phi2 * slope
        if len(hs) > 1:
            r0, r1 = hs[-1] / h, hs[-2] / h
            bend = (slope - (slot[1] - slot[2]) / r1) / (r0 + r1)
            x_ = x_ + (phi2 * r0 - phi3) * bend
        yield s, [x_ + diffusion(t, h, eta) * s_noise * noise, D(s), slot[1]], (s, t)
        hs.append(h)


def unipc(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """UniPC of order 3 with B(h) = h (Zhao et al. 2023, algorithms 1 and 2; A1111's bh1, lower orders at both ends).

    The network looks at a predicted point; what it says there corrects the point, from which the next is predicted.
    """
    n = len(sigmas) - 1
    for i in range(n):
        s, before = sigmas[i], sigmas[i - 1 :: -1][: min(3, i, n + 1 - i)] if i else sigmas[:0]
        corrected = unified(s, before, [*slot[2:5]], slot[1], [D(s)]) if i else x
        levels = sigmas[i::-1][: min(3, i + 1, n - i)]
        yield s, [unified(sigmas[i + 1], levels, [D(s), *slot[2:4]], corrected, []), corrected, D(s), *slot[2:4]]


def unified(t: float, levels: Sigmas, Ds: Sequence[Vector], base: Vector, new: Sequence[Vector]) -> Vector:
    """UniP from the point `base` at levels[0] to t, or UniC with the `new` answer at t; `Ds`: those at the levels."""
    s, h = levels[0], math.log(levels[0] / t)
    r = [math.log(s / level) / h for level in levels[1:]] + [1.0] * len(new)
    slopes = [(D - Ds[0]) / r_ for D, r_ in zip([*Ds[1 : len(levels)], *new], r, strict=True)]
    b, phi, factorial = [], math.expm1(-h) / -h - 1, 1
    for i in range(1, len(r) + 1):
        b.append(phi * factorial / -h)
        factorial *= i + 1
        phi = phi / -h - 1 / factorial
    rho = np.array([0.5]) if len(r) == 1 else np.linalg.solve(np.vander(r, increasing=True).T, b)
    x_ = t / s * base - math.expm1(-h) * Ds[0]
    return np.asarray(x_ + h * np.dot(rho, slopes) if r else x_)
