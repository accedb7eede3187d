"""Latents, or any channels, brought to another size by PyTorch's rules (`interpolate`, corners not aligned), in numpy.

Knows nothing of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Filter:
    """A kernel, how far it reaches, and whether it is widened where a picture becomes smaller."""

    kernel: Callable[[Weights], Weights]
    reach: int
    antialias: bool = False


def _triangle(x: Weights) -> Weights:
    return np.asarray(np.maximum(1 - np.abs(x), 0))


def _cubic(a: float) -> Callable[[Weights], Weights]:
    """The cubic convolution kernel of Keys 1981, whose slope at 1 is `a`."""

    def kernel(x: Weights) -> Weights:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        return np.asarray(np.where(x <= 1, near, np.where(x < 2, far, 0)))

    return kernel


FILTERS = {
    "Latent": Filter(_triangle, 1),
    "Latent (antialiased)": Filter(_triangle, 1, True),
    "Latent (bicubic)": Filter(_cubic(-0.75), 2),
    "Latent (bicubic antialiased)": Filter(_cubic(-0.5), 2, True),
}
NEAREST = {"Latent (nearest)": 0.0, "Latent (nearest-exact)": 0.5}  # where in a pixel it is looked up

LATENT = (*FILTERS, *NEAREST)


def covering(channels: Floats, size: tuple[int, int], upscaler: str) -> Floats:
    """[C,h,w] at another (height, width), in proportion: what is too much of one side is cut off at both ends."""
    (h, w), (height, width) = channels.shape[1:], size
    whole = resized(channels, (max(height, width * h // w), max(width, height * w // h)), upscaler)
    top, left = (whole.shape[1] - height) // 2, (whole.shape[2] - width) // 2
    return whole[:, top : top + height, left : left + width]


def resized(channels: Floats, size: tuple[int, int], upscaler: str) -> Floats:
    """[C,h,w] at another (height, width), by one of A1111's latent upscalers."""
    if upscaler in NEAREST:
        rows, columns = (
            np.floor((np.arange(to) + NEAREST[upscaler]) * (of / to)).astype(int)
            for of, to in zip(channels.shape[1:], size, strict=True)
        )
        return np.asarray(channels[:, rows[:, None], columns])
    down, across = (_weights(FILTERS[upscaler], of, to) for of, to in zip(channels.shape[1:], size, strict=True))
    return np.asarray(down @ channels @ across.T, np.float32)


def _weights(filter: Filter, of: int, to: int) -> Floats:
    """[to, of]: how much of each pixel is in each new one; what lies beyond the border is the pixel at it."""
    scale = of / to
    wide = max(scale, 1) if filter.antialias else 1
    centres = (np.arange(to)[:, None] + 0.5) * scale
    if filter.antialias:  # beyond the border there is nothing, and the rest weighs more
        weights = filter.kernel((np.arange(of) + 0.5 - centres) / wide)
        return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)
    weights = np.zeros((to, of))
    first = np.floor(centres - 0.5).astype(int)
    for offset in range(1 - filter.reach, filter.reach + 1):
        places = first + offset
        np.add.at(weights, (np.arange(to)[:, None], places.clip(0, of - 1)), filter.kernel(places + 0.5 - centres))
    return np.asarray(weights, np.float32)
