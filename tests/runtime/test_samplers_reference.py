"""Every schedule and every sampler's table against the papers, in float64, on a small nonlinear network."""

from __future__ import annotations

import numpy as np
import pytest
from reference_solvers import SCHEDULES, SOLVERS, Array, Diffusion, ddim_levels

from clipskip import samplers, schedules
from clipskip.engines.shapes import SLOTS

PREDICTIONS = ["epsilon", "v_prediction"]
STEPS = [1, 2, 3, 20, 200]
SAMPLERS = {sampler.name: sampler for sampler in samplers.SAMPLERS}

mixing = np.random.default_rng(1).normal(size=(6, 6)) / 2


def network(x: Array, timestep: float) -> Array:
    """Smooth, nonlinear, and sensitive to the fraction of a timestep."""
    return np.tanh(x @ mixing + np.sin(timestep / 50)) + 0.1 * x


def run_table(rows: list[samplers.Row], x: Array, noises: Array) -> Array:
    """What the step engine does, in float64."""
    state = np.zeros((SLOTS, *x.shape))
    state[0] = x
    for row, noise in zip(rows, noises, strict=False):
        output = network(state[0] * row.c_in, row.timestep)
        state = np.tensordot(row.update, np.concatenate([state, output[None], noise[None]]), axes=1)
    return state[0]


def run_paper(name: str, diffusion: Diffusion, sigmas: Array, x: Array, noises: Array) -> Array:
    draws = iter(noises)

    def denoise(x: Array, sigma: Array) -> Array:
        output = network(x / np.sqrt(sigma**2 + 1), float(diffusion.timestep(sigma)))
        return diffusion.denoised(x, sigma, output)

    return SOLVERS[name](denoise, x, sigmas, lambda: next(draws))


def models(prediction: str) -> tuple[Diffusion, schedules.NoiseModel]:
    betas = 0.00085, 0.012, 1000
    return Diffusion.scaled_linear(*betas, prediction), schedules.NoiseModel(*betas, prediction)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_equal_their_papers(schedule: str, steps: int) -> None:
    diffusion, model = models("epsilon")
    np.testing.assert_allclose(
        schedules.sigmas(schedule, steps, model), SCHEDULES[schedule](diffusion, steps), rtol=1e-12, atol=0
    )


def test_schedules_follow_the_betas_of_the_model() -> None:
    betas = 0.0005, 0.02, 400
    diffusion, model = Diffusion.scaled_linear(*betas), schedules.NoiseModel(*betas)
    for name, schedule in SCHEDULES.items():
        np.testing.assert_allclose(schedules.sigmas(name, 7, model), schedule(diffusion, 7), rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SOLVERS)
def test_tables_equal_the_papers_solvers(name: str, schedule: str, prediction: str, steps: int) -> None:
    diffusion, model = models(prediction)
    sigmas = SCHEDULES[schedule](diffusion, steps)
    random = np.random.default_rng(steps)
    x, noises = random.normal(size=(3, 6)) * sigmas[0], random.normal(size=(2 * steps, 3, 6))
    rows = samplers.table(SAMPLERS[name], sigmas, model)
    start = x / np.sqrt(sigmas[0] ** 2 + 1) if name == "DDIM" else x
    np.testing.assert_allclose(
        run_table(rows, x, noises), run_paper(name, diffusion, sigmas, start, noises), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    ("steps", "calls"), [(2, 1), (3, 3), (7, 7), (10, 9), (20, 19), (30, 30), (200, 199), (501, 999), (1000, 999)]
)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_has_a1111s_timesteps_and_calls_in_variables_of_unit_variance(
    prediction: str, steps: int, calls: int
) -> None:
    diffusion, model = models(prediction)
    noise = np.random.default_rng(steps).normal(size=(3, 6))
    scale, rows = samplers.plan(SAMPLERS["DDIM"], "uniform", steps, model)
    expected = run_paper("DDIM", diffusion, ddim_levels(diffusion, steps), noise, np.zeros((1000, 3, 6)))
    np.testing.assert_allclose(run_table(rows, noise * scale, np.zeros((1000, 3, 6))), expected, rtol=1e-14, atol=5e-14)
    assert len(rows) == calls
    assert scale * rows[0].c_in == pytest.approx(1, abs=1e-15)
    timesteps = [min(t + 1, 999) for t in range(0, 1000, 1000 // steps)][:0:-1]
    np.testing.assert_allclose([row.timestep for row in rows], timesteps, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_row_asks_the_network_at_the_fractional_timestep_of_its_sigma(name: str) -> None:
    diffusion, model = models("epsilon")
    rows = samplers.table(SAMPLERS[name], SCHEDULES["karras"](diffusion, 13), model)
    sigmas = np.array([row.sigma for row in rows])
    np.testing.assert_allclose([row.timestep for row in rows], diffusion.timestep(sigmas), rtol=0, atol=1e-9)
    np.testing.assert_allclose([row.c_in for row in rows], 1 / np.sqrt(sigmas**2 + 1), rtol=1e-14)
    assert len(rows) == (25 if name == "Heun" else 13)


@pytest.mark.parametrize("name", [sampler.name for sampler in samplers.SAMPLERS])
def test_every_sampler_of_the_runtime_has_a_reference(name: str) -> None:
    assert name in SOLVERS


@pytest.mark.parametrize("name", SOLVERS)
def test_a_row_asks_for_noise_where_the_paper_draws_some(name: str) -> None:
    """The paper's solver draws before the next row, and where that would be the last one perhaps in vain: times 0."""
    diffusion, model = models("epsilon")
    sigmas = SCHEDULES["uniform"](diffusion, 5)
    after: list[int] = []  # how often the network was asked when noise was drawn
    asked = 0

    def denoise(x: Array, sigma: Array) -> Array:
        nonlocal asked
        asked += 1
        return x / 2

    def draw() -> Array:
        after.append(asked)
        return np.ones(3)

    SOLVERS[name](denoise, np.ones(3), sigmas, draw)
    rows = samplers.table(SAMPLERS[name], sigmas, model)
    assert len(rows) == asked
    assert [number for number, row in enumerate(rows, 1) if row.noisy] == [n for n in after if n < asked]
