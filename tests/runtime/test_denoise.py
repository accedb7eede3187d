"""The denoising loop over a fake step engine."""

import numpy as np
import pytest
from fake_step import FakeStep

from clipskip.context import Conditioning, Part
from clipskip.denoise import Image, denoise
from clipskip.noise import initial
from clipskip.samplers import SAMPLERS, table
from clipskip.schedules import NoiseModel, sigmas

MODEL = NoiseModel()
BY_NAME = {sampler.name: sampler for sampler in SAMPLERS}


def part(weight, *values, ends=(1000,)):
    contexts = tuple(np.full((77, 4), value, np.float32) for value in values)
    return Part(weight, tuple(ends), tuple(range(len(values))), contexts)


PLAIN = (part(1.0, 0.5),)


def image(seed=1, sampler="Euler", steps=5, parts=PLAIN):
    start, noise = initial(seed, (4, 8, 8), "cpu", None, 0)
    levels = sigmas("karras", steps, MODEL)
    return Image(table(BY_NAME[sampler], levels, MODEL), Conditioning(tuple(parts), 1), start * levels[0], noise)


def finished(engine, images):
    *_, last = denoise(engine, images)
    return last.latents()


SETTINGS = (
    {"seed": 1, "steps": 3},
    {"seed": 2, "sampler": "Euler a", "steps": 7, "parts": (part(6.0, 0.2), part(-5.0, 0.1))},
    {"seed": 3, "sampler": "Heun", "steps": 4, "parts": (part(1.0, 0.3, 0.9, ends=(2, 8)),)},
    {"seed": 4, "sampler": "DPM++ 2M SDE", "steps": 5},
)


def test_images_of_one_batch_do_not_depend_on_each_other():
    together = finished(FakeStep(), [image(**each) for each in SETTINGS])
    for latents, each in zip(together, SETTINGS, strict=True):
        np.testing.assert_allclose(latents, finished(FakeStep(), [image(**each)])[0], rtol=1e-5, atol=1e-5)


def test_the_batch_shrinks_as_images_end_and_a_new_loop_is_bound_only_then():
    engine = FakeStep()
    finished(engine, [image(**each) for each in SETTINGS])
    assert [len(loop.feeds["state"]) for loop in engine.loops] == [4, 3, 2]  # the tables have 3, 7, 7 and 5 rows


def test_only_the_small_inputs_are_rewritten_while_nothing_else_changes():
    engine = FakeStep()
    finished(engine, [image(steps=6)])
    assert engine.loops[0].rewritten == [set(), *[{"timestep", "c_in", "update"}] * 5]


def test_a_prompt_schedule_rewrites_the_context_once_when_it_switches():
    engine = FakeStep()
    finished(engine, [image(steps=6, parts=(part(1.0, 0.3, 0.9, ends=(2, 6)),))])
    (loop,) = engine.loops
    assert [number for number, names in enumerate(loop.rewritten) if "context" in names] == [3]


def test_noise_is_sent_only_for_calls_that_use_it():
    engine = FakeStep()
    finished(engine, [image(sampler="Euler a", steps=4)])
    sent = ["noise" in names for names in engine.loops[0].rewritten]
    assert sent == [False, True, True, False]  # the first call's is bound with the loop; the last step has none
    assert engine.loops[0].feeds["noise"].any()


def test_stopping_half_way_closes_the_loop():
    engine = FakeStep()
    running = denoise(engine, [image()])
    next(running)
    running.close()
    assert engine.loops[0].closed


@pytest.mark.parametrize("call", [1, 3, 5])
def test_a_snapshot_shows_the_image_at_unit_variance(call):
    for snapshot in denoise(FakeStep(), [image(steps=5, parts=(part(1.0, 0.0),))]):
        if snapshot.call == call:
            assert snapshot.latents().shape == (1, 4, 8, 8)
            assert 0 < snapshot.latents().std() < 1.5
