"""How many steps a strength leaves, and the tables of what is left."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clipskip.engines.shapes import REMEMBERED
from clipskip.img2img import Pass, content, masked, plan_of, steps_at
from clipskip.samplers import SAMPLERS, Plan, Sampler, plan
from clipskip.schedules import NoiseModel, ddim_levels

MODEL = NoiseModel()
NAMED = {sampler.name: sampler for sampler in SAMPLERS}


@pytest.mark.parametrize(
    ("strength", "exact", "steps"),
    [
        (0.75, False, (20, 16)),
        (0.5, False, (20, 11)),
        (0.01, False, (20, 1)),
        (0.9995, False, (20, 20)),
        (0.7, True, (28, 20)),
        (0.9995, True, (20, 20)),
        (0, True, (20, 0)),
        (1, True, (20, 20)),
    ],
)
def test_the_steps_of_a_strength_are_a1111s(strength: float, exact: bool, steps: tuple[int, int]) -> None:
    assert steps_at(strength, 20, exact) == steps


def left(sampler: Sampler, strength: float = 0.5, steps: int = 20, schedule: str = "karras") -> Plan:
    run = Pass(64, 64, *steps_at(strength, steps, exact=False), strength)
    return plan_of(run, sampler, schedule, MODEL, {}, ())


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_every_sampler_starts_from_a_noised_picture_and_ends_at_one(sampler: Sampler) -> None:
    """A network that knows the picture, whatever the noise: its latents come out."""
    known, noise = 0.7, -1.3
    for strength in (0.03, 0.5, 0.97):
        made = left(sampler, strength)
        assert 1 <= len(made.rows) < 90
        assert made.picture > 0
        state = np.zeros(len(made.rows[0].update))
        state[0] = made.picture * known + made.scale * noise
        for row in made.rows:
            out = (state[0] - known) / row.sigma
            state = row.update @ [*state[:REMEMBERED], out, out, 0.0]
        assert abs(state[0] - known) < (0.15 if sampler.levels or strength < 0.1 else 0.02), strength


def test_the_levels_are_the_last_of_the_whole_schedule() -> None:
    whole, part = plan(NAMED["Euler"], "karras", 20, MODEL), left(NAMED["Euler"], 0.5)
    assert [row.sigma for row in part.rows] == [row.sigma for row in whole.rows][-11:]
    assert part.scale == part.rows[0].sigma


def test_ddim_is_noised_one_timestep_above_its_first_call() -> None:
    levels, part = ddim_levels(20, MODEL), left(NAMED["DDIM"], 0.5)
    assert [row.sigma for row in part.rows] == list(levels[-10:-1])
    assert part.scale / part.picture == pytest.approx(levels[-11])
    assert part.picture == pytest.approx(math.sqrt((levels[-10] ** 2 + 1) / (levels[-11] ** 2 + 1)))


def test_one_motion_serves_all_strengths() -> None:
    assert left(NAMED["DPM++ SDE"], 0.5).span == left(NAMED["DPM++ SDE"], 0.9).span
    assert left(NAMED["DPM++ SDE"], 0.5).span == plan(NAMED["DPM++ SDE"], "karras", 20, MODEL).span


def test_strength_0_has_no_step_and_strength_1_all_of_them() -> None:
    assert (left(NAMED["Euler"], 0).rows, left(NAMED["Euler"], 0).picture) == ([], 1.0)
    whole = left(NAMED["Euler"], 1)
    assert (len(whole.rows), whole.picture) == (20, 0.0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", [NAMED["Euler"], NAMED["LCM"], NAMED["DDIM"]], ids=lambda sampler: sampler.name)
def test_a_mask_pulls_to_the_known_latents(sampler: Sampler, prediction: str) -> None:
    """What the network is taken to answer where the mask is 0 is denoised to `known`, in the sampler's own terms."""
    model = NoiseModel(prediction=prediction)
    made = masked(plan(sampler, "karras", 5, model), sampler, model)
    denoised = sampler.denoiser(sampler.noise_model(prediction=prediction))
    for row in made.rows:
        point, known = 3.0, 0.4
        answer = row.inputs["pull"] @ [point, known]
        D = denoised(row.sigma)
        at = np.zeros(len(D))
        at[0], at[REMEMBERED] = point, answer
        assert D @ at == pytest.approx(known, abs=1e-4)


def test_what_is_painted_starts_from_what_fill_says() -> None:
    known, mask, noise = np.full((4, 2, 2), 2.0), np.array([[1.0, 0], [0, 0]]), np.full((4, 2, 2), 9.0)
    assert [content(known, mask, noise, fill)[0, 0, 0] for fill in ("original", "latent noise", "latent nothing")] == [
        2.0, 9.0, 0.0,
    ]  # fmt: skip
    assert (content(known, mask, noise, "latent noise")[:, 1] == 2).all()
