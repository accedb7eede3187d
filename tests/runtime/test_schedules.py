"""Noise levels of the schedules."""

import numpy as np
import pytest

from clipskip.schedules import SCHEDULES, NoiseModel, sigmas

MODEL = NoiseModel()


def test_the_trained_noise_of_sd_spans_the_known_sigmas():
    assert MODEL.sigma_min == pytest.approx(0.029167, abs=1e-6)
    assert MODEL.sigma_max == pytest.approx(14.614647, abs=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 3, 20, 999, 1000, 10_000])
def test_every_schedule_falls_from_the_largest_sigma_to_zero(name, n):
    levels = sigmas(name, n, MODEL)
    assert len(levels) == n + 1
    assert levels[0] == pytest.approx(MODEL.sigma_max)
    assert levels[-1] == 0
    assert (np.diff(levels) < 0).all()


def test_karras_at_rho_7_has_the_published_middle():
    low, high = MODEL.sigma_min ** (1 / 7), MODEL.sigma_max ** (1 / 7)
    assert sigmas("karras", 3, MODEL)[1] == pytest.approx(((low + high) / 2) ** 7)


def test_sgm_uniform_leaves_out_the_least_noise():
    np.testing.assert_allclose(sigmas("sgm_uniform", 4, MODEL)[:-1], sigmas("uniform", 5, MODEL)[:-2])


def test_timestep_is_the_inverse_of_sigma_and_is_clamped():
    for t in (0, 0.25, 500.5, 999):
        assert MODEL.timestep(float(MODEL.sigma(np.array(t)))) == pytest.approx(t, abs=1e-9)
    assert MODEL.timestep(1e-9) == 0
    assert MODEL.timestep(1e9) == 999
