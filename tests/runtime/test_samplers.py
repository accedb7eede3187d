"""What every sampler's table has in common. Their numbers are checked in test_samplers_reference."""

import numpy as np
import pytest

from clipskip.basis import PREVIEW
from clipskip.engines.shapes import REMEMBERED, SLOTS
from clipskip.samplers import SAMPLERS, plan, table
from clipskip.schedules import NoiseModel, sigmas

MODEL = NoiseModel()
NAMED = {sampler.name: sampler for sampler in SAMPLERS}
PERFECT = [sampler for sampler in SAMPLERS if sampler.name not in ("LCM", "DPM fast", "UniPC")]
EVERY = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)


def calls(sampler, steps):
    """Of DDIM, PLMS and UniPC as many as A1111 makes."""
    if sampler.unit:
        return len(range(0, 1000, 1000 // steps)) - (sampler.name in ("DDIM", "DDIM CFG++"))
    return steps * sampler.calls_per_step - (sampler.calls_per_step - 1)


@EVERY
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 150])
def test_a_table_has_a_row_per_call_and_ends_without_noise(sampler, steps):
    if steps == 1 and sampler.name in ("DDIM", "DDIM CFG++", "PLMS"):  # refused
        return
    rows = plan(sampler, "karras", steps, MODEL).rows
    assert len(rows) == calls(sampler, steps)
    assert all(row.update.shape == (SLOTS, REMEMBERED + 3) and np.isfinite(row.update).all() for row in rows)
    assert not rows[-1].noisy
    assert rows[0].timestep > 480


@EVERY
@pytest.mark.parametrize("steps", [2, 20, 40])
def test_every_sampler_leaves_a_slot_free_for_a_preview(sampler, steps):
    for row in plan(sampler, "karras", steps, MODEL).rows:
        assert row.update.shape == (SLOTS, REMEMBERED + 3)
        assert row.update[PREVIEW].any()


@EVERY
@pytest.mark.parametrize("schedule", ["simple", "beta", "karras"])
def test_a_thousand_steps_and_more_give_finite_tables(sampler, schedule):
    rows = plan(sampler, schedule, 1000 if sampler.unit else 3000, MODEL).rows
    assert all(np.isfinite(row.update).all() and np.isfinite(row.c_in) for row in rows)


@pytest.mark.parametrize("sampler", PERFECT, ids=lambda sampler: sampler.name)
@pytest.mark.parametrize("steps", [8, 40])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_network_leads_to_its_point_whatever_the_sampler(sampler, prediction, steps):
    """If the network always says that the clean image is 0.7, every solver must end at 0.7."""
    model = NoiseModel(prediction=prediction)
    state = np.zeros(SLOTS)
    state[0] = 9.0
    for row in table(sampler, sigmas("karras", steps, model), model):
        scale = np.sqrt(row.sigma**2 + 1)
        epsilon = (state[0] - 0.7) / row.sigma
        velocity = (state[0] / scale**2 - 0.7) * scale / row.sigma
        out = epsilon if prediction == "epsilon" else velocity
        state = row.update @ np.concatenate([state[:REMEMBERED], [out, out, 0.3]])
    assert state[0] == pytest.approx(0.7, abs=1e-9)


def test_the_next_to_last_level_is_left_out_where_a1111_does_so():
    assert [sampler.name for sampler in SAMPLERS if sampler.discard] == ["DPM++ 3M SDE", "DPM2", "DPM2 a"]
    levels = sigmas("exponential", 9, MODEL)
    rows = plan(NAMED["DPM++ 3M SDE"], "exponential", 8, MODEL).rows
    np.testing.assert_allclose([row.sigma for row in rows], levels[:8])


def test_a_row_of_an_sde_names_the_interval_of_its_noise_and_the_plan_the_whole():
    made = plan(NAMED["DPM++ SDE"], "karras", 3, MODEL)
    a, b, c, _ = sigmas("karras", 3, MODEL)
    assert [row.noise for row in made.rows] == [
        pytest.approx((a, np.sqrt(a * b))),
        pytest.approx((a, b)),
        pytest.approx((b, np.sqrt(b * c))),
        pytest.approx((b, c)),
        None,
    ]
    assert made.span == pytest.approx((c, a))
    assert plan(NAMED["DPM++ SDE"], "karras", 3, MODEL, {"eta": 0.0}).span is None
    assert plan(NAMED["Euler a"], "karras", 3, MODEL).span is None


def test_churn_adds_noise_before_the_first_call_and_draws_outside_its_limits_as_well():
    made = plan(NAMED["Euler"], "karras", 4, MODEL, {"s_churn": 2.0, "s_tmax": 5.0})
    assert made.churn == 0
    assert [row.noise for row in made.rows] == [(), (), (), None]
    first = plan(NAMED["Euler"], "karras", 4, MODEL, {"s_churn": 0.8, "s_noise": 2.0})
    assert first.churn == pytest.approx(2 * MODEL.sigma_max * np.sqrt(1.2**2 - 1))
    assert first.rows[0].sigma == pytest.approx(1.2 * MODEL.sigma_max)
    assert plan(NAMED["Euler"], "karras", 4, MODEL).churn is None


def test_levels_that_are_given_are_visited_and_end_at_0():
    made = plan(NAMED["Euler"], "karras", 3, MODEL, levels=(9.0, 3.0, 0.5))
    assert [row.sigma for row in made.rows] == [9.0, 3.0, 0.5]
    assert made.scale == 9
    discarded = plan(NAMED["DPM2"], "karras", 3, MODEL, levels=(9.0, 3.0, 0.5))
    assert discarded.rows[-1].sigma == 0.5
