"""What prompt weights do to a context: the arithmetic after the text engine. Knows nothing of prompts or tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
MODES = ("Original", "No norm", "Ignore", "None")


def emphasise(context: Array, weights: Array, mode: str = "Original", counts: Sequence[int] | None = None) -> Array:
    """Weight the vectors of one chunk position, as AUTOMATIC1111's `Emphasis` setting does.

    `context` is float32 [V, 77, D]: the same chunk position of all V schedule variants of one prompt, after the
    depth's LayerNorm; `weights` is [V, 77]; `counts` says how often the prompt's schedule names each variant (once, if
    not given). "Original" multiplies each token's vector by its weight and then scales
    the whole array so that its mean is what it was; "No norm" only multiplies; "Ignore" and "None" change nothing.
    Weights of 1 change no bit in any mode. Where the weighted mean is 0, A1111 divides by it; here it is not scaled.
    """
    if mode in ("Ignore", "None") or np.all(weights == 1):
        return context
    weighted = context * np.asarray(weights, np.float32)[..., None]
    if mode == "No norm":
        return weighted
    before, after = _mean(context, counts), _mean(weighted, counts)
    return weighted * np.float32(before / after) if after else weighted


def _mean(context: Array, counts: Sequence[int] | None) -> float:
    return float(np.average(context.mean(axis=(1, 2), dtype=np.float64), weights=counts))
