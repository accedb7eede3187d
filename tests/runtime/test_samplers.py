"""What every sampler's table has in common. Their numbers are checked in test_samplers_reference."""

import numpy as np
import pytest

from clipskip.engines.shapes import SLOTS
from clipskip.samplers import SAMPLERS, table
from clipskip.schedules import NoiseModel, sigmas

MODEL = NoiseModel()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_table_has_a_row_per_call_and_ends_without_noise(sampler, steps):
    rows = table(sampler, sigmas("karras", steps, MODEL), MODEL)
    assert len(rows) == steps * sampler.calls_per_step - (sampler.calls_per_step - 1)
    assert all(row.update.shape == (SLOTS, SLOTS + 2) and np.isfinite(row.update).all() for row in rows)
    assert not rows[-1].noisy
    assert rows[0].timestep == 999


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_network_leads_to_its_point_whatever_the_sampler(sampler, prediction):
    """If the network always says that the clean image is 0.7, every solver must end at 0.7."""
    model = NoiseModel(prediction=prediction)
    state = np.zeros(SLOTS)
    state[0] = 9.0
    for row in table(sampler, sigmas("karras", 8, model), model):
        scale = np.sqrt(row.sigma**2 + 1)
        epsilon = (state[0] - 0.7) / row.sigma
        velocity = (state[0] / scale**2 - 0.7) * scale / row.sigma
        out = epsilon if prediction == "epsilon" else velocity
        state = row.update @ np.concatenate([state, [out, 0.3]])
    assert state[0] == pytest.approx(0.7, abs=1e-9)
