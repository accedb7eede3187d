"""Hypothesis strategies that several tests share."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from clipskip.request import Request

WHOLE_FIELDS = ["seed", "subseed", "steps", "width", "height", "batch", "comma_backtrack", "eta_noise_seed_delta"]
SOLVER_FIELDS = ["eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "rho", "sigma_min", "sigma_max"]
FRACTION_FIELDS = ["cfg", "cfg_rescale", "subseed_strength", *SOLVER_FIELDS]
LIST_FIELDS = ["sigmas"]
DEPTH_FIELDS = ["clip_skip", "clip_skip_diffusers", "negative_clip_skip"]
TEXT_FIELDS = ["prompt", "negative_prompt", "sampler", "schedule", "rng", "emphasis", "compat"]
FLAG_FIELDS = ["pad_cond_uncond"]
OPTIONAL_FIELDS = ["seed", "subseed", "width", "height", "compat", *SOLVER_FIELDS, "sigmas"]


def requests() -> st.SearchStrategy[Request]:
    """Requests with every field, in and out of the ranges that a model has."""
    whole = st.integers(-(2**70), 2**70)
    number = st.floats(allow_nan=False, allow_infinity=False)
    kinds: dict[str, st.SearchStrategy[Any]] = dict.fromkeys(TEXT_FIELDS, st.text())
    kinds |= dict.fromkeys(WHOLE_FIELDS, whole) | dict.fromkeys(FRACTION_FIELDS, number)
    kinds |= dict.fromkeys(DEPTH_FIELDS, st.none() | whole | number)
    kinds |= dict.fromkeys(FLAG_FIELDS, st.booleans())
    kinds |= dict.fromkeys(LIST_FIELDS, st.lists(number, min_size=1, max_size=5).map(tuple))
    kinds |= {name: st.none() | kinds[name] for name in OPTIONAL_FIELDS}
    return st.builds(Request, **kinds)
