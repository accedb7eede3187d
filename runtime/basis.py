"""The letters that samplers are written in: coefficients over what the step engine remembers, gives and is given.

`x` is the point the network looks at (slot 0), `slot[k]` what an earlier row stored in slot k, `D(s)` the denoised
point at noise level s, `noise` a unit normal. Knows nothing of any sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from clipskip.engines.shapes import SLOTS

Vector = npt.NDArray[np.float64]  # coefficients over the slots, the network's output and the noise
Denoised = Callable[[float], Vector]
Content: TypeAlias = "Sequence[Vector]"  # of slots 0, 1, ...; slots that are not named become 0

# The noise level the network is asked at and the new content; with two levels, the noise is a Brownian motion's between
# them. A stage at no level asks nothing: it adds noise before the network is asked.
Stage: TypeAlias = "tuple[float | None, Content] | tuple[float, Content, tuple[float, float]]"
Solver = Callable[..., Iterator[Stage]]  # of the levels, D and settings of a request

PREVIEW = SLOTS - 1  # the slot of the denoised estimate, which no sampler uses: previews look at it

_basis = np.eye(SLOTS + 2)
slot, out, noise = _basis[:SLOTS], _basis[SLOTS], _basis[SLOTS + 1]
x = slot[0]
