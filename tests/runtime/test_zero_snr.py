"""Noise that was rescaled so that its last level has no signal."""

from __future__ import annotations

import numpy as np
import pytest

from clipskip.engines.shapes import REMEMBERED, SLOTS
from clipskip.samplers import SAMPLERS, Sampler, plan
from clipskip.schedules import LEAST, SCHEDULES, NoiseModel, sigmas

MODEL = NoiseModel(prediction="v_prediction", zero_snr=True)
PICTURE = 0.7


def test_the_last_level_is_that_of_a1111_and_the_first_one_stays() -> None:
    plain = NoiseModel()
    assert pytest.approx(4518.76, abs=0.01) == MODEL.sigma_max
    assert pytest.approx(LEAST, rel=1e-9) == 1 / (MODEL.sigma_max**2 + 1)
    assert MODEL.sigma_min == pytest.approx(plain.sigma_min, rel=1e-12)
    assert (np.diff(MODEL.log_sigmas) > 0).all()


def test_the_levels_are_those_of_diffusers() -> None:
    torch = pytest.importorskip("torch")
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - rescale_zero_terminal_snr(betas)).cumprod(0).numpy()
    own = 1 / (np.exp(2 * MODEL.log_sigmas) + 1)
    assert kept[-1] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(own[:-1], kept[:-1], rtol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_falls_from_the_new_last_level(name: str) -> None:
    levels = sigmas(name, 20, MODEL)
    assert (np.diff(levels) < 0).all()
    assert levels[0] == pytest.approx(MODEL.sigma_max) or name in ("ddim", "align_your_steps")  # as they are in A1111


@pytest.mark.parametrize("schedule", ["automatic", "karras"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_a_network_that_knows_the_picture_is_led_to_it_in_float32(sampler: Sampler, schedule: str) -> None:
    made = plan(sampler, sampler.automatic if schedule == "automatic" else schedule, 12, MODEL)
    rng = np.random.default_rng(0)
    state = np.zeros(SLOTS, np.float32)
    state[0] = made.scale * rng.standard_normal() + (made.churn or 0) * rng.standard_normal()
    for row in made.rows:
        seen, s = float(state[0]) * row.c_in, row.sigma
        v = (seen / np.sqrt(s**2 + 1) - PICTURE) * np.sqrt(s**2 + 1) / s
        noise = rng.standard_normal() if row.noisy else 0
        state = row.update.astype(np.float32) @ np.array([*state[:REMEMBERED], v, v, noise], np.float32)
        assert np.isfinite(state).all()
    assert state[0] == pytest.approx(PICTURE, abs=0.02 if sampler.levels else 1e-3)  # whose last level is not 0
