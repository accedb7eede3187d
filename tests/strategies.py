"""Hypothesis strategies that several tests share."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from clipskip.request import Request

WHOLE_FIELDS = ["seed", "subseed", "steps", "width", "height", "batch", "comma_backtrack", "eta_noise_seed_delta"]
WHOLE_FIELDS += ["mask_blur", "mask_padding", "hires_steps"]
SOLVER_FIELDS = ["eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "rho", "sigma_min", "sigma_max"]
FRACTION_FIELDS = ["cfg", "cfg_rescale", "subseed_strength", "strength", "hires_scale", *SOLVER_FIELDS]
LIST_FIELDS = ["sigmas"]
NAME_FIELDS = ["loras"]
DEPTH_FIELDS = ["clip_skip", "clip_skip_diffusers", "negative_clip_skip"]
TEXT_FIELDS = ["prompt", "negative_prompt", "sampler", "schedule", "rng", "emphasis", "compat", "decoder"]
TEXT_FIELDS += ["resize_mode", "fill", "inpaint_area", "hires_size", "hires_upscaler"]
FLAG_FIELDS = ["pad_cond_uncond", "exact_steps", "mask_invert"]
PICTURE_FIELDS = ["image", "mask"]
OPTIONAL_FIELDS = ["seed", "subseed", "width", "height", "compat", *SOLVER_FIELDS, "sigmas", "loras"]
OPTIONAL_FIELDS += ["strength", "hires_scale", "hires_size", *PICTURE_FIELDS]


def requests() -> st.SearchStrategy[Request]:
    """Requests with every field, in and out of the ranges that a model has."""
    whole = st.integers(-(2**70), 2**70)
    number = st.floats(allow_nan=False, allow_infinity=False)
    kinds: dict[str, st.SearchStrategy[Any]] = dict.fromkeys(TEXT_FIELDS, st.text())
    kinds |= dict.fromkeys(WHOLE_FIELDS, whole) | dict.fromkeys(FRACTION_FIELDS, number)
    kinds |= dict.fromkeys(DEPTH_FIELDS, st.none() | whole | number)
    kinds |= dict.fromkeys(FLAG_FIELDS, st.booleans())
    kinds |= dict.fromkeys(LIST_FIELDS, st.lists(number, min_size=1, max_size=5).map(tuple))
    kinds |= dict.fromkeys(PICTURE_FIELDS, st.text().map("data:".__add__) | st.text().map("sha256:".__add__))
    named = st.text(min_size=1).map(lambda text: text.replace(",", ";").strip() or "x")
    kinds |= dict.fromkeys(NAME_FIELDS, st.lists(named, min_size=1, max_size=3).map(tuple))
    kinds |= {name: st.none() | kinds[name] for name in OPTIONAL_FIELDS}
    return st.builds(Request, **kinds)
