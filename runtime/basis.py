"""The letters that samplers are written in: coefficients over what the step engine remembers, gives and is given.

`x` is the point the network looks at (slot 0), `slot[k]` what an earlier row stored in slot k, `D(s)` the denoised
point at noise level s, `noise` a unit normal. Knows nothing of any sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from clipskip.engines.shapes import REMEMBERED

Vector = npt.NDArray[np.float64]  # coefficients over the slots, the network's two outputs and the noise
Denoised = Callable[[float], Vector]
Content: TypeAlias = "Sequence[Vector]"  # of slots 0, 1, ...; slots that are not named become 0

# The noise level the network is asked at and the new content; with two levels, the noise is a Brownian motion's between
# them. A stage at no level asks nothing: it adds noise before the network is asked.
Stage: TypeAlias = "tuple[float | None, Content] | tuple[float, Content, tuple[float, float]]"
Solver = Callable[..., Iterator[Stage]]  # of the levels, D and settings of a request

PREVIEW = REMEMBERED  # the slot of the denoised estimate, of which no sampler asks: previews look at it

_basis = np.eye(REMEMBERED + 3)
slot, (out, reference, noise) = _basis[:REMEMBERED], _basis[REMEMBERED:]
x = slot[0]


def unguided(D: Vector) -> Vector:
    """What the same formula gives of the network's answer to the negative prompt alone, which is its second output."""
    return np.asarray(D + D[REMEMBERED] * (reference - out))
