"""Every schedule and every sampler's table against other programs and the papers, in float64, on a small network.

What k-diffusion and diffusers gave is in data/samplers.npz; the rest is derived anew in reference_solvers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from reference_solvers import SCHEDULES, SOLVERS, STEPS, Array, Diffusion, cfgpp, ddim_levels, start, toy_network

from clipskip import samplers, schedules
from clipskip.engines.shapes import REMEMBERED, SLOTS

PREDICTIONS = ["epsilon", "v_prediction"]
SAMPLERS = {sampler.name: sampler for sampler in samplers.SAMPLERS}
GOLDEN: dict[str, Array] = dict(np.load(Path(__file__).parent / "data" / "samplers.npz"))
CHURN = {"s_churn": 20.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.003}
ETA = {"eta": 0.6, "s_noise": 0.9}
BETAS = 0.00085, 0.012, 1000
CFGPP = {"DDIM CFG++": 0.0, "Euler CFG++": 0.0, "Euler a CFG++": 1.0}  # and their eta


def draws(noises: Array) -> Iterator[Array]:
    return iter(noises)


def run_table(rows: list[samplers.Row], x: Array, noises: Iterator[Array]) -> Array:
    """What the step engine does, in float64; the answer to the negative prompt is another network's."""
    state = np.zeros((SLOTS, *x.shape))
    state[0] = x
    for row in rows:
        output = toy_network(state[0] * row.c_in, row.timestep)
        noise = next(noises) if row.noisy else np.zeros_like(x)
        memory = [*state[:REMEMBERED], output, unguided_network(state[0] * row.c_in, row.timestep), noise]
        state = np.tensordot(row.update, memory, axes=1)
    return state[0]


def run_plan(plan: samplers.Plan, steps: int) -> Array:
    """A whole plan, from the noise that the golden runs started with."""
    x, noises = start(steps)
    fresh = draws(noises)
    x = x * plan.scale
    if plan.churn is not None:
        x = x + plan.churn * next(fresh)
    return run_table(plan.rows, x, fresh)


def unguided_network(x: Array, timestep: float) -> Array:
    """Another toy network: what the first one would say to the negative prompt."""
    return toy_network(x[..., ::-1], timestep / 2)


def run_paper(name: str, diffusion: Diffusion, sigmas: Array, x: Array, noises: Iterator[Array]) -> Array:
    def denoise(x: Array, sigma: Array) -> Array:
        output = toy_network(x / np.sqrt(sigma**2 + 1), float(diffusion.timestep(sigma)))
        return diffusion.denoised(x, sigma, output)

    return SOLVERS[name](denoise, x, sigmas, lambda: next(noises))


def models(prediction: str) -> tuple[Diffusion, schedules.NoiseModel]:
    return Diffusion.scaled_linear(*BETAS, prediction), schedules.NoiseModel(*BETAS, prediction)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_schedules_equal_k_diffusions_and_a1111s(schedule: str, steps: int) -> None:
    levels = schedules.sigmas(schedule, steps, schedules.NoiseModel(*BETAS))
    np.testing.assert_allclose(levels, GOLDEN[f"{schedule}/{steps}"], rtol=1e-12, atol=1e-12)


def test_schedules_follow_the_betas_of_the_model() -> None:
    betas = 0.0005, 0.02, 400
    diffusion, model = Diffusion.scaled_linear(*betas), schedules.NoiseModel(*betas)
    for name, schedule in SCHEDULES.items():
        np.testing.assert_allclose(schedules.sigmas(name, 7, model), schedule(diffusion, 7), rtol=1e-12, atol=0)


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.count("/") == 2])
def test_samplers_equal_k_diffusions_under_every_schedule(key: str) -> None:
    name, schedule, steps = key.split("/")
    given = {"churn": CHURN, "eta": ETA}.get(schedule, {})
    schedule = "karras" if given else schedule
    sampler = replace(SAMPLERS[name], discard=False)
    plan = samplers.plan(sampler, schedule, int(steps), schedules.NoiseModel(*BETAS), given)
    np.testing.assert_allclose(run_plan(plan, int(steps)), GOLDEN[key], rtol=0, atol=1e-10)


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.startswith(("DPM fast/", "UniPC/", "PLMS/"))])
def test_samplers_with_levels_of_their_own_equal_k_diffusions_and_diffusers(key: str) -> None:
    name, steps = key.split("/")
    plan = samplers.plan(SAMPLERS[name], "uniform", int(steps), schedules.NoiseModel(*BETAS))
    np.testing.assert_allclose(run_plan(plan, int(steps)), GOLDEN[key], rtol=0, atol=1e-10)


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.startswith("LCM/")])
def test_lcm_equals_diffusers_at_the_timesteps_of_its_distillation(key: str) -> None:
    steps = int(key.split("/")[1])
    timesteps = [999 - 20 * round(49 * i / steps) for i in range(steps)]
    model = schedules.NoiseModel(*BETAS)
    levels = [float(model.sigma(t)) for t in timesteps]
    plan = samplers.plan(SAMPLERS["LCM"], "uniform", steps, model, levels=levels)
    assert [row.timestep for row in plan.rows] == timesteps
    np.testing.assert_allclose(run_plan(plan, steps), GOLDEN[key], rtol=0, atol=1e-10)


def test_lcm_goes_evenly_from_its_last_level_to_its_first_and_asks_at_the_nearest_one() -> None:
    model = schedules.NoiseModel(*BETAS)
    rows = samplers.plan(SAMPLERS["LCM"], "uniform", 4, model).rows
    known = np.arange(19, 1000, 20)
    t = [999, 19 + 980 * 2 / 3, 19 + 980 / 3, 19]
    log_sigmas = np.interp(t, known, np.log(models("epsilon")[0].levels[known]))
    np.testing.assert_allclose([row.sigma for row in rows], np.exp(log_sigmas), rtol=1e-12)
    assert [row.timestep for row in rows] == [999, 679, 339, 19]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in ("DDIM", "PLMS")])
def test_tables_equal_the_papers_solvers(name: str, schedule: str, prediction: str, steps: int) -> None:
    diffusion, model = models(prediction)
    sigmas = SCHEDULES[schedule](diffusion, steps)
    x, noises = start(steps)
    rows = samplers.table(SAMPLERS[name], sigmas, model)
    np.testing.assert_allclose(
        run_table(rows, x * sigmas[0], draws(noises)),
        run_paper(name, diffusion, sigmas, x * sigmas[0], draws(noises)),
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize(
    ("steps", "calls"), [(2, 1), (3, 3), (7, 7), (10, 9), (20, 19), (30, 30), (200, 199), (501, 999), (1000, 999)]
)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["DDIM", "PLMS"])
def test_ddim_and_plms_have_a1111s_timesteps_and_calls_in_variables_of_unit_variance(
    name: str, prediction: str, steps: int, calls: int
) -> None:
    diffusion, model = models(prediction)
    noise = np.random.default_rng(steps).normal(size=(3, 6))
    plan = samplers.plan(SAMPLERS[name], "uniform", steps, model)
    expected = run_paper(name, diffusion, ddim_levels(diffusion, steps), noise, draws(np.zeros((0, 3, 6))))
    atol = 5e-14 if name == "DDIM" else 1e-10
    np.testing.assert_allclose(run_table(plan.rows, noise * plan.scale, draws(noise)), expected, rtol=1e-14, atol=atol)
    assert len(plan.rows) == calls + (name == "PLMS")
    assert plan.scale * plan.rows[0].c_in == pytest.approx(1, abs=1e-15)
    timesteps = [min(t + 1, 999) for t in range(0, 1000, 1000 // steps)][::-1]
    asked = [timesteps[0], *timesteps[1:2], *timesteps[1:-1]] if name == "PLMS" else timesteps[:-1]
    np.testing.assert_allclose([row.timestep for row in plan.rows], asked, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_eta_equals_its_papers_equation_16(eta: float) -> None:
    diffusion, model = models("epsilon")
    levels = ddim_levels(diffusion, 10)
    z, noises = start(10)
    plan = samplers.plan(SAMPLERS["DDIM"], "uniform", 10, model, {"eta": eta})
    expected, fresh = z, draws(noises)
    for s, t in pairwise(levels):
        a, a_next = 1 / (1 + s**2), 1 / (1 + t**2)
        e = toy_network(expected, float(diffusion.timestep(s)))
        spread = eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
        x0 = (expected - np.sqrt(1 - a) * e) / np.sqrt(a)
        expected = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next - spread**2) * e + spread * next(fresh)
    np.testing.assert_allclose(run_table(plan.rows, z * plan.scale, draws(noises)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", CFGPP)
def test_cfgpp_equals_its_papers_algorithm_under_every_schedule(name: str, prediction: str, steps: int) -> None:
    diffusion, model = models(prediction)
    own = name == "DDIM CFG++"
    if own and steps == 1:
        return  # its only level is its last: refused
    for schedule in ["uniform"] if own else [*SCHEDULES]:
        sigmas = ddim_levels(diffusion, steps) if own else SCHEDULES[schedule](diffusion, steps)
        z, noises = start(steps)
        plan = samplers.plan(SAMPLERS[name], schedule, steps, model)
        expected = run_cfgpp(diffusion, z, sigmas, CFGPP[name], own, draws(noises))
        np.testing.assert_allclose(run_plan(plan, steps), expected, rtol=0, atol=1e-10)


def test_ddim_cfgpp_takes_eta() -> None:
    diffusion, model = models("epsilon")
    z, noises = start(10)
    plan = samplers.plan(SAMPLERS["DDIM CFG++"], "uniform", 10, model, {"eta": 0.6})
    expected = run_cfgpp(diffusion, z, ddim_levels(diffusion, 10), 0.6, True, draws(noises))
    np.testing.assert_allclose(run_plan(plan, 10), expected, rtol=0, atol=1e-10)


def run_cfgpp(diffusion: Diffusion, z: Array, sigmas: Array, eta: float, own: bool, noises: Iterator[Array]) -> Array:
    """`own`: from unit variance, as DDIM; else from noise alone, of the first level."""

    def denoiser(network: Callable[[Array, float], Array]) -> Callable[[Array, Array], Array]:
        def denoise(x: Array, sigma: Array) -> Array:
            output = network(x / np.sqrt(sigma**2 + 1), float(diffusion.timestep(sigma)))
            return diffusion.denoised(x, sigma, output)

        return denoise

    first = z if own else z * sigmas[0] / np.sqrt(1 + sigmas[0] ** 2)
    return cfgpp(denoiser(toy_network), denoiser(unguided_network), first, sigmas, eta, lambda: next(noises))


@pytest.mark.parametrize("name", SOLVERS)
def test_every_row_asks_the_network_at_the_fractional_timestep_of_its_sigma(name: str) -> None:
    diffusion, model = models("epsilon")
    rows = samplers.table(SAMPLERS[name], SCHEDULES["karras"](diffusion, 13), model)
    sigmas = np.array([row.sigma for row in rows])
    levels = sigmas[sigmas > 0]  # PLMS asks a second time where its first step ends
    np.testing.assert_allclose([row.timestep for row in rows], diffusion.timestep(levels), rtol=0, atol=1e-9)
    np.testing.assert_allclose([row.c_in for row in rows], 1 / np.sqrt(sigmas**2 + 1), rtol=1e-14)
    assert len(rows) == {"Heun": 25, "Restart": 25, "PLMS": 14}.get(name, 13)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_of_the_runtime_has_a_reference(name: str) -> None:
    assert name in (*SOLVERS, *CFGPP) or any(key.startswith(f"{name}/") for key in GOLDEN)


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
