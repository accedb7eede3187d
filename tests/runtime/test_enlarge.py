"""Resizing in numpy against torch's `interpolate`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipskip import enlarge
from clipskip.request import UPSCALERS

MODES = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}


@pytest.mark.parametrize("upscaler", enlarge.LATENT)
@pytest.mark.parametrize(
    ("of", "to"), [((16, 24), (32, 48)), ((16, 24), (37, 41)), ((33, 20), (17, 9)), ((1, 1), (3, 5))]
)
def test_latents_are_resized_as_torch_does(upscaler: str, of: tuple[int, int], to: tuple[int, int]) -> None:
    latents = np.random.default_rng(1).normal(size=(4, *of)).astype(np.float32)
    mode, antialias = MODES[upscaler]
    how = {"antialias": True} if antialias else {}
    expected = torch.nn.functional.interpolate(torch.from_numpy(latents)[None], size=to, mode=mode, **how)[0].numpy()
    np.testing.assert_allclose(enlarge.resized(latents, to, upscaler), expected, atol=2e-5)


def test_every_upscaler_of_latents_can_be_asked_for() -> None:
    assert {name for name in UPSCALERS if name.startswith("Latent")} == set(enlarge.LATENT) == set(MODES)


def test_another_shape_is_covered_and_cut_at_both_ends() -> None:
    latents = np.arange(8.0, dtype=np.float32).reshape(1, 2, 4)
    np.testing.assert_array_equal(enlarge.covering(latents, (2, 2), "Latent"), latents[:, :, 1:3])
    assert enlarge.covering(latents, (6, 6), "Latent").shape == (1, 6, 6)
