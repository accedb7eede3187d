"""The open batch over a fake step engine: who joins and leaves when, what is rewritten, and that nobody notices."""

from itertools import product

import numpy as np
import pytest
from fake_step import BY_NAME, SETTINGS, B, FakeStep, H, N, W, finished, image, row

from clipskip.batch import Batch
from clipskip.engines.manifest import AxisRange, Port
from clipskip.errors import EngineIncompatible


@pytest.mark.parametrize("exact_rows", [True, False])
def test_images_that_start_together_do_not_depend_on_each_other(exact_rows):
    together = finished(FakeStep(), *[image(**each) for each in SETTINGS], exact_rows=exact_rows)
    for latents, each in zip(together, SETTINGS, strict=True):
        np.testing.assert_array_equal(latents, finished(FakeStep(), image(**each))[0])


@pytest.mark.parametrize("exact_rows", [True, False])
def test_images_that_join_at_any_call_are_what_they_are_alone(exact_rows):
    waiting = images = [image(**each) for each in SETTINGS]
    batch, calls = Batch(FakeStep(), images[0], exact_rows=exact_rows), 0
    while waiting or batch.images:
        if waiting and calls % 2 == 0:
            batch.add(waiting[0])
            waiting = waiting[1:]
        batch.step()
        calls += 1
    assert calls < sum(len(each.table) for each in images)
    for made, each in zip(images, SETTINGS, strict=True):
        np.testing.assert_array_equal(made.latents, finished(FakeStep(), image(**each))[0])


def test_of_every_sampler_an_image_in_a_batch_is_what_it_is_alone():
    """Each twice, and the second one joins late."""
    images = [image(seed=seed, sampler=name, steps=20) for seed in (1, 2) for name in BY_NAME]
    batch = Batch(FakeStep(B=64, N=64), images[0], exact_rows=False)
    for number, each in enumerate(images):
        batch.add(each)
        if number == len(BY_NAME):
            batch.step()
    while batch.images:
        batch.step()
    for made, (seed, name) in zip(images, product((1, 2), BY_NAME), strict=True):
        alone = finished(FakeStep(), image(seed=seed, sampler=name, steps=20))[0]
        np.testing.assert_array_equal(made.latents, alone, err_msg=name)


def test_an_image_that_is_removed_leaves_the_others_as_they_are():
    stays, goes = image(**SETTINGS[1]), image(**SETTINGS[4])
    batch = Batch(FakeStep(), stays, exact_rows=False)
    batch.add(goes)
    batch.add(stays)
    batch.step()
    batch.remove(goes)
    while batch.images:
        batch.step()
    np.testing.assert_array_equal(stays.latents, finished(FakeStep(), image(**SETTINGS[1]))[0])


def test_a_new_loop_is_bound_only_for_another_number_of_slots_or_rows():
    engine = FakeStep()
    finished(engine, *[image(**each) for each in SETTINGS[:4]])
    assert [loop.feeds["mix"].shape for loop in engine.loops] == [(4, 5), (4, 4), (2, 3)]  # 3, 7, 7 and 5 calls


def test_with_rows_in_powers_of_two_fewer_shapes_are_needed():
    engine = FakeStep()
    finished(engine, *[image(**each) for each in SETTINGS[:4]], exact_rows=False)
    assert [loop.feeds["mix"].shape for loop in engine.loops] == [(4, 8), (4, 4), (2, 4)]


def test_no_bucket_is_larger_than_the_engine_takes():
    engine = FakeStep(B=3, N=5)
    finished(engine, *[image(seed=seed, steps=2) for seed in range(3)], exact_rows=False)
    assert [loop.feeds["mix"].shape for loop in engine.loops] == [(3, 4)]


@pytest.mark.parametrize("exact_rows", [True, False])
def test_an_engine_for_two_rows_is_given_a_second_one_of_no_weight(exact_rows):
    engine = FakeStep(B=1, N=AxisRange(2, 2, 2))
    (latents,) = finished(engine, image(**SETTINGS[0]), exact_rows=exact_rows)
    (loop,) = engine.loops
    np.testing.assert_array_equal(loop.feeds["mix"], [[1, 0]])
    np.testing.assert_array_equal(latents, finished(FakeStep(), image(**SETTINGS[0]))[0])


def test_joining_a_free_slot_writes_that_slot_and_binds_nothing():
    engine = FakeStep()
    images = [image(seed=seed, steps=6) for seed in range(4)]
    batch = Batch(engine, images[0], exact_rows=False)
    for each in images[:3]:
        batch.add(each)
    batch.step()
    batch.add(images[3])
    batch.step()
    (loop,) = engine.loops
    assert loop.written == [("state", 3)]
    batch.remove(images[1])
    batch.add(image(seed=9, steps=6))
    batch.step()
    assert loop.written == [("state", 3), ("state", 1)]
    assert len(engine.loops) == 1


def test_only_the_small_inputs_are_rewritten_while_nothing_else_changes():
    engine = FakeStep()
    finished(engine, image(steps=6))
    assert engine.loops[0].rewritten[1:] == [{"timestep", "c_in", "update"}] * 5


def test_a_prompt_schedule_rewrites_the_context_once_when_it_switches():
    engine = FakeStep()
    finished(engine, image(steps=6, rows=(row(1.0, 0.3, 0.9, ends=(2, 6)),)))
    (loop,) = engine.loops
    assert [number for number, names in enumerate(loop.rewritten) if "context" in names] == [0, 3]


def test_noise_is_sent_only_for_calls_that_use_it():
    engine = FakeStep()
    finished(engine, image(sampler="Euler a", steps=4))
    sent = ["noise" in names for names in engine.loops[0].rewritten]
    assert sent == [True, True, True, False]  # the last step has none
    assert engine.loops[0].feeds["noise"].any()


def test_a_context_is_repeated_to_the_length_of_the_call():
    engine = FakeStep()
    values = row(2.0, 0.1), row(-1.0, 0.7, chunks=2)
    finished(engine, image(rows=values, chunks=2, steps=1))
    fed = engine.loops[0].feeds["context"]
    assert fed.shape == (2, 154, 4)
    assert (fed[0] == np.float32(0.1)).all()


def test_an_input_that_the_step_graph_gains_is_fed_without_a_line_of_the_batch_knowing_it():
    extra = Port("pooled", "float32", (N, 3)), Port("hint", "float32", (B, 4, H, W))
    pooled = {"pooled": np.full(3, 0.25, np.float32)}
    hint = np.arange(4 * 64, dtype=np.float32).reshape(4, 8, 8) / 100
    fed = {"rows": (row(1.0, 0.5, **pooled),), "hint": hint}
    engine = FakeStep(extra)
    one, other = finished(engine, image(seed=1, **fed), image(seed=2, **fed | {"hint": 0.0}))
    np.testing.assert_array_equal(engine.loops[0].feeds["hint"], [hint, np.zeros_like(hint)])
    np.testing.assert_array_equal(one, finished(FakeStep(extra), image(seed=1, **fed))[0])
    assert not np.array_equal(one, finished(FakeStep(extra), image(seed=1, **fed | {"hint": 0.0}))[0])
    assert other.shape == one.shape


@pytest.mark.parametrize(("inputs", "name"), [({"hint": 1.0}, "hint"), ({}, "pull")])
def test_inputs_that_image_and_engine_do_not_share_are_refused_by_name(inputs, name):
    engine = FakeStep([Port("pull", "float32", (B, 2))] if name == "pull" else ())
    batch = Batch(engine, image(**inputs), exact_rows=True)
    with pytest.raises(EngineIncompatible, match=name):
        batch.add(image(**inputs))


@pytest.mark.parametrize("call", [1, 3, 5])
def test_an_image_shows_what_it_will_be_at_every_call(call):
    made = image(steps=6, rows=(row(1.0, 0.0),))
    batch = Batch(FakeStep(), made, exact_rows=True)
    batch.add(made)
    for _ in range(call):
        batch.step()
    assert batch.latents(made).shape == (4, 8, 8)
    assert 0 < batch.latents(made).std() < 1.5
