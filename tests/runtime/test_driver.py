"""Who runs together, in what order, in whose thread, and what becomes of the others when one fails or leaves."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from driving import Engines, driver, limits, sized
from fake_step import SETTINGS, FakeStep, finished, image, row

from clipskip.errors import Busy, DeviceLost, DeviceOutOfMemory, EngineCorrupt


def run(driver, *images):
    driver.add(images)
    finish(driver, *images)


def finish(driver, *images):
    try:
        done, total = sum(each.call for each in images), sum(len(each.table) for each in images)
        while done < total:
            driver.advance(images, done)
            done = sum(each.call for each in images)
    finally:
        driver.remove(images)


def test_images_share_a_batch_only_when_size_and_length_agree():
    engines = Engines()
    long = (row(1.0, 0.5, chunks=2),)
    images = [image(seed=1), image(seed=2, rows=long, chunks=2), sized(8, 16), image(seed=3)]
    images.append(image(seed=4, rows=long, chunks=2))
    run(driver(engines), *images)
    sizes = [
        (loop.feeds["state"].shape[0], loop.feeds["state"].shape[4], loop.feeds["context"].shape[1])
        for loop in engines.step.loops
    ]
    assert sizes == [(2, 8, 77), (2, 8, 154), (1, 16, 77)]


def test_a_batch_holds_no_more_images_than_allowed_and_the_next_waits_for_a_slot():
    engines = Engines()
    images = [image(seed=seed, steps=3 + seed) for seed in range(4)]
    run(driver(engines, limits(max_batch=2)), *images)
    assert [loop.feeds["state"].shape[0] for loop in engines.step.loops] == [2, 1]
    assert sum(len(loop.rewritten) for loop in engines.step.loops) == 10  # 3 and 4, then 5 and 6, in two slots
    for seed, made in enumerate(images):
        np.testing.assert_array_equal(made.latents, finished(FakeStep(), image(seed=seed, steps=3 + seed))[0])


def test_a_batch_holds_no_more_rows_than_the_engine_takes():
    engines = Engines()
    wide = tuple(row(1.0, value / 10) for value in range(5))
    run(driver(engines, limits(N=(1, 8))), image(rows=wide), image(rows=wide[:3]), image(rows=wide[:1]))
    assert [loop.feeds["mix"].shape for loop in engines.step.loops] == [(2, 8), (1, 1)]


def test_a_batch_holds_no_more_pixels_than_the_backend_likes_but_at_least_one_image():
    engines = Engines()
    run(driver(engines, limits(pixels=64 * 64 * 2)), *[image(seed=seed, steps=2) for seed in range(3)], sized(16, 32))
    assert [loop.feeds["state"].shape[0] for loop in engines.step.loops] == [2, 1, 1]


def test_lengths_are_shared_only_when_asked_for_and_the_image_says_so():
    for share, count in ((False, 2), (True, 1)):
        engines = Engines()
        long, short = image(rows=(row(1.0, 0.5, chunks=2),), chunks=2), image(seed=2)
        run(driver(engines, share_lengths=share), short, long)  # whatever their order
        assert len({loop.feeds["context"].shape[1] for loop in engines.step.loops}) == count
        assert (short.stretched, long.stretched) == (share, False)


def test_nobody_overtakes_an_image_that_waits_for_a_loop():
    engines = Engines()
    shared = driver(engines, loops=1)
    first, other, late = image(seed=1, steps=4), sized(8, 16, seed=2, steps=1), image(seed=3, steps=4)
    shared.add([first])
    shared.advance([first], 0)
    shared.add([other, late])
    shared.advance([other], 0)
    assert (first.done, late.call) == (True, 0)


def test_an_image_joins_while_another_runs():
    engines = Engines()
    shared = driver(engines)
    one, two = image(**SETTINGS[1]), image(**SETTINGS[4])
    shared.add([one])
    shared.advance([one], 1)
    shared.add([two])
    shared.advance([two], 0)
    assert (one.call, two.call) == (3, 1)
    finish(shared, two)
    np.testing.assert_array_equal(two.latents, finished(FakeStep(), image(**SETTINGS[4]))[0])


@pytest.mark.parametrize("count", [2, 8])
def test_threads_that_share_a_driver_share_its_calls_and_get_what_they_get_alone(count):
    engines = Engines()
    shared, start = driver(engines), threading.Barrier(count)
    images = [image(**SETTINGS[i % 5]) for i in range(count)]

    def work(made):
        start.wait()
        return run(shared, made)

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(work, images))
    for i, made in enumerate(images):
        np.testing.assert_array_equal(made.latents, finished(FakeStep(), image(**SETTINGS[i % 5]))[0])
    assert engines.users == 0
    assert all(loop.closed for loop in engines.step.loops)


def test_the_engine_is_held_as_long_as_images_are_on_their_way():
    engines = Engines()
    shared, made = driver(engines), image()
    shared.add([made])
    shared.advance([made], 0)
    assert engines.users == 1
    shared.remove([made])
    assert engines.users == 0
    assert engines.step.loops[0].closed


def test_what_goes_wrong_in_a_call_is_the_error_of_all_its_images_and_of_no_others():
    engines = Engines()
    shared = driver(engines)
    one, two, other = image(seed=1), image(seed=2), sized(8, 16)
    shared.add([one, two])
    shared.advance([one], 0)
    engines.step.fail = DeviceLost("gone")
    for made in (one, two):
        with pytest.raises(DeviceLost):
            shared.advance([made], 9)
        shared.remove([made])
    engines.step.fail = None
    run(shared, other)
    assert other.done


def test_an_interrupt_reaches_the_thread_that_it_came_to_and_the_others_are_told():
    engines = Engines()
    shared, mine, theirs = driver(engines), image(seed=1), image(seed=2)
    shared.add([mine, theirs])
    engines.step.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        shared.advance([mine], 0)
    engines.step.fail = None
    with pytest.raises(Busy, match="interrupted"):
        shared.advance([theirs], 0)


def test_an_engine_that_cannot_be_opened_is_the_error_of_who_wanted_it():
    engines = Engines()
    engines.fail = EngineCorrupt("bits")
    shared, made = driver(engines), image()
    with pytest.raises(EngineCorrupt):
        run(shared, made)
    engines.fail = None
    run(shared, image())


def test_images_can_be_looked_at_before_they_start_while_they_run_and_when_they_are_done():
    shared, one, two = driver(Engines()), image(steps=2), sized(8, 16)
    shared.add([one])
    assert [each.shape for each in shared.latents([one, two])] == [(4, 8, 8), (4, 8, 16)]
    shared.advance([one], 0)
    running = shared.latents([one])[0]
    finish(shared, one)
    assert not np.array_equal(shared.latents([one])[0], running)


def test_an_image_that_leaves_in_the_middle_of_a_call_is_gone_after_it():
    """Python's garbage collector may close a forgotten generator in the very thread that runs the network."""
    engines = Engines()
    shared, stays, goes = driver(engines), image(seed=1), image(seed=2)
    shared.add([stays, goes])
    shared.advance([stays], 0)
    loop = engines.step.loops[-1]
    run_once = loop.run

    def run_and_forget(feeds):
        shared.remove([goes])
        gc.collect()
        run_once(feeds)

    loop.run = run_and_forget
    shared.advance([stays], 1)
    assert goes.call == 2
    finish(shared, stays)
    np.testing.assert_array_equal(stays.latents, finished(FakeStep(), image(seed=1))[0])


def test_no_thread_sees_an_image_done_before_its_latents_are_there():
    engines, reading = Engines(), threading.Event()
    shared, mine, theirs = driver(engines), image(seed=1, steps=1), image(seed=2, steps=1)
    first = mine.latents
    loop_of = engines.step.loop

    def slow(feeds, feedback):
        loop = loop_of(feeds, feedback)
        read = loop.read

        def slow_read(name, slot=None):
            reading.set()
            time.sleep(0.2)
            return read(name, slot)

        loop.read = slow_read
        return loop

    engines.step.loop = slow
    shared.add([mine, theirs])
    driving = threading.Thread(target=shared.advance, args=([theirs], 0))
    driving.start()
    reading.wait()
    shared.advance([mine], 0)
    assert mine.latents is not first
    driving.join()


def test_where_a_larger_loop_has_no_memory_those_who_wanted_to_join_are_told_and_the_others_go_on():
    engines = Engines()
    shared, running = driver(engines), image(**SETTINGS[3])
    shared.add([running])
    shared.advance([running], 1)
    loop_of = engines.step.loop

    def full(feeds, feedback):
        if len(feeds["mix"]) > 1:
            raise DeviceOutOfMemory("full")
        return loop_of(feeds, feedback)

    engines.step.loop = full
    late = [image(seed=seed) for seed in (7, 8)]
    shared.add(late)
    for each in late:
        with pytest.raises(DeviceOutOfMemory):
            shared.advance([each], 0)
    shared.remove(late)
    finish(shared, running)
    np.testing.assert_array_equal(running.latents, finished(FakeStep(), image(**SETTINGS[3]))[0])
    assert engines.users == 0
