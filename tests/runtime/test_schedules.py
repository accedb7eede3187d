"""Noise levels of the schedules."""

import math

import numpy as np
import pytest

from clipskip.schedules import SCHEDULES, NoiseModel, beta_quantiles, settings, sigmas

MODEL = NoiseModel()


def test_the_trained_noise_of_sd_spans_the_known_sigmas():
    assert MODEL.sigma_min == pytest.approx(0.029167, abs=1e-6)
    assert MODEL.sigma_max == pytest.approx(14.614647, abs=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 3, 20, 999, 1000, 10_000])
def test_every_schedule_falls_from_the_largest_sigma_to_zero(name, n):
    levels = sigmas(name, n, MODEL)
    assert (np.diff(levels) < 0).all()
    if name != "ddim" and (name, n) != ("simple", 10_000):  # which have as many levels as the model at most
        assert len(levels) == n + 1
    if name != "ddim" and (name, n) != ("align_your_steps", 1):  # as in A1111
        assert levels[0] == pytest.approx(MODEL.sigma_max, rel=1e-4)
    assert levels[-1] == (pytest.approx(MODEL.sigma_min) if name == "kl_optimal" else 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_takes_the_limits_that_it_has(name):
    levels = sigmas(name, 6, MODEL, sigma_min=0.1, sigma_max=10.0)
    taken = name not in ("uniform", "align_your_steps", "simple", "ddim")
    assert ("sigma_min" in settings(SCHEDULES[name])) == taken
    assert (levels[0] == pytest.approx(10)) == taken
    if taken and name != "sgm_uniform":
        assert levels[levels > 0][-1] == pytest.approx(0.1)


def test_rho_bends_karras_and_polyexponential_alone():
    assert [name for name in SCHEDULES if "rho" in settings(SCHEDULES[name])] == ["karras", "polyexponential"]
    assert sigmas("karras", 3, MODEL, rho=1.0)[1] == pytest.approx((MODEL.sigma_min + MODEL.sigma_max) / 2)
    bent = np.exp(np.log(MODEL.sigma_min) + 0.25 * np.log(MODEL.sigma_max / MODEL.sigma_min))
    assert sigmas("polyexponential", 3, MODEL, rho=2.0)[1] == pytest.approx(bent)


def test_quantiles_of_the_beta_distribution_invert_its_integral_to_a_billionth():
    q = np.array([1e-9, 1e-3, 0.1, 0.25, 0.5])
    x, a = beta_quantiles(q, 0.6), 0.6
    u = np.polynomial.legendre.leggauss(200)
    for quantile, mass in zip(x, q, strict=True):  # t = s^(1 / a) makes the integrand smooth at 0
        s = quantile**a * (u[0] + 1) / 2
        integral = np.sum(u[1] * (1 - s ** (1 / a)) ** (a - 1)) * quantile**a / 2 / a
        assert integral * math.gamma(2 * a) / math.gamma(a) ** 2 == pytest.approx(mass, abs=1e-9)


def test_a_model_with_fewer_timesteps_has_all_schedules():
    model = NoiseModel(steps=400)
    for name in SCHEDULES:
        assert (np.diff(sigmas(name, 20, model)) < 0).all()


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
