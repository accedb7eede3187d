"""Previews: what every sampler takes for the picture, at every call, in the tables, in batches and as pictures."""

import math

import numpy as np
import pytest
from fake_step import BY_NAME, FakeStep, finished, image, row

import clipskip
from clipskip.basis import PREVIEW
from clipskip.batch import Batch
from clipskip.engines.shapes import REMEMBERED, SLOTS
from clipskip.errors import DeviceOutOfMemory
from clipskip.samplers import SAMPLERS, plan
from clipskip.schedules import NoiseModel

DETERMINISTIC = ("Euler", "LMS", "Heun", "DPM2", "DDIM", "PLMS", "UniPC", "DPM++ 2M")
CLEAN = 0.7


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("given", [{}, {"s_churn": 30.0}], ids=["plain", "churned"])
def test_the_preview_of_a_perfect_network_is_its_point_at_every_call(sampler, prediction, given):
    """Whatever the noise, the network says that the clean image is 0.7; LCM mixes in the noise near its end."""
    model = NoiseModel(prediction=prediction)
    rows = plan(sampler, "karras", 20, model, given).rows
    state = np.zeros(SLOTS)
    state[0] = 9.0
    for each in rows:
        epsilon, t = (state[0] - CLEAN) / each.sigma, 10 * each.timestep
        velocity = (epsilon - each.sigma * CLEAN) / math.sqrt(each.sigma**2 + 1)
        expected = CLEAN
        if sampler.name == "LCM":
            expected = 0.25 / (t**2 + 0.25) * state[0] + t / math.sqrt(t**2 + 0.25) * CLEAN
        answer = epsilon if prediction == "epsilon" else velocity
        state = each.update @ [*state[:REMEMBERED], answer, answer, 3.0]  # guided or not, and the noise
        assert state[PREVIEW] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", BY_NAME)
def test_what_stands_in_the_slot_of_previews_changes_no_picture(name):
    plain, other = FakeStep(), FakeStep()
    loop = other.loop

    def soiled(feeds, feedback):
        feeds["state"][:, PREVIEW] = 1e6
        return loop(feeds, feedback)

    other.loop = soiled
    np.testing.assert_array_equal(*(finished(each, image(sampler=name, steps=6))[0] for each in (plain, other)))


def test_before_its_first_call_an_image_shows_the_noise_that_it_starts_from():
    made = image(steps=6)
    batch = Batch(FakeStep(), made, exact_rows=True)
    batch.add(made)
    assert 0.7 < batch.latents(made).std() < 1.3


def test_an_image_is_shown_where_there_was_no_memory_for_others_to_join():
    engine, made = FakeStep(B=4, N=8), image(steps=6)
    batch = Batch(engine, made, exact_rows=True)
    batch.add(made)
    batch.step()
    shown, loop = batch.latents(made), engine.loop

    def full(feeds, feedback):
        raise DeviceOutOfMemory("full")

    engine.loop = full
    batch.add(image(seed=2, rows=(row(1.0, 0.2),)))
    with pytest.raises(DeviceOutOfMemory):
        batch.step()
    np.testing.assert_array_equal(batch.latents(made), shown)
    engine.loop = loop
    batch.step()


@pytest.fixture(scope="module")
def pipe(sample_store):
    with clipskip.open(sample_store) as pipe:
        yield pipe


def test_half_way_a_preview_is_close_to_the_picture_for_deterministic_samplers(pipe):
    """At 7, the default guidance, the sample model's pictures themselves change until late with some of them."""
    common = {"prompt": "a large yellow star on a purple background", "seed": 3, "steps": 14, "cfg": 2}
    for sampler in DETERMINISTIC:
        for progress in pipe.steps(clipskip.Request(sampler=sampler, **common)):
            if progress.call == math.ceil(progress.calls / 2):
                shown = np.asarray(progress.preview()[0], float)
        error = np.mean((shown - np.asarray(progress.results[0].images[0])) ** 2)
        assert 10 * math.log10(255**2 / error) > 24, sampler
