"""The driver when things go wrong at the worst moment: interrupts, the garbage collector, loops that do not close."""

import os
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from facts import step_artefact
from fake_step import FakeStep, finished, image, row

from clipskip.backends.pool import LentLoop, Pool
from clipskip.driver import Driver
from clipskip.errors import BackendUnavailable, Busy, RequestError
from clipskip.resolve import Limits


class Engines:
    """The step engine behind a lock, as in the engine cache; `fail` is raised when somebody wants it."""

    def __init__(self):
        self.step, self.users, self.fail, self.lock = FakeStep(), 0, None, threading.RLock()

    @contextmanager
    def use(self, role, mix=None):
        if self.fail:
            raise self.fail
        with self.lock:
            self.users += 1
        try:
            yield self.step
        finally:
            with self.lock:
                self.users -= 1


def driver(engines, rows=16):
    built = step_artefact(h=(1, 64), w=(1, 64), B=(1, 8), N=(1, rows), T=(77, 77))
    limits = Limits.of(built, 2**30, None, build_command=None)
    return Driver(engines, limits, loops=4, exact_rows=True, share_lengths=False)


def in_thread(work):
    """What `work` returns or raises, in a thread that may not hang."""
    outcome = []

    def go():
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(20)
    assert outcome, "it hangs"
    return outcome[0]


def with_loops(engines, change):
    """Let `change` see every loop that is made."""
    make = engines.step.loop

    def loop(feeds, feedback):
        made = make(feeds, feedback)
        change(made)
        return made

    engines.step.loop = loop


def test_an_interrupt_while_a_preview_waits_leaves_the_driver_usable(monkeypatch):
    shared, mine, theirs = driver(Engines()), image(seed=1), image(seed=2)
    shared.add([mine, theirs])

    def interrupted(*_):
        raise KeyboardInterrupt

    shared._busy = True  # another thread is in a call
    monkeypatch.setattr(shared._changed, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shared.latents([mine])
    monkeypatch.undo()
    shared._end_turn()  # that call ends
    in_thread(lambda: shared.advance([theirs], 0))
    assert theirs.call == 1


def test_an_interrupt_while_the_engine_opens_loses_nobody_s_image():
    engines = Engines()
    shared, mine, theirs = driver(engines), image(seed=1), image(seed=2)
    shared.add([theirs, mine])
    engines.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        shared.advance([mine], 0)
    shared.remove([mine])
    engines.fail = None
    assert isinstance(in_thread(lambda: shared.advance([theirs], 0)), Busy)


def test_a_loop_that_cannot_be_closed_does_not_leave_the_driver_busy():
    engines, stuck = Engines(), [True]
    shared, mine, other = driver(engines), image(seed=1, steps=1), image(seed=2)

    def break_close(loop):
        def close():
            if stuck.pop():
                raise OSError("stuck")

        loop.close = close if stuck else loop.close

    with_loops(engines, break_close)
    shared.add([mine])
    with pytest.raises(OSError, match="stuck"):
        shared.advance([mine], 0)
    shared.add([other])
    in_thread(lambda: shared.advance([other], 0))
    assert other.call == 1


def test_an_image_of_many_rows_is_not_overtaken_for_ever():
    shared = driver(Engines(), rows=4)
    running = []

    def start(seed):
        running.append(image(seed=seed, steps=4, rows=(row(6.0, 0.2), row(-5.0, 0.1))))
        shared.add(running[-1:])

    for seed in (1, 2):
        start(seed)
        shared.advance(running, sum(each.call for each in running))
    wide = image(seed=9, rows=tuple(row(1.0, value / 10) for value in range(4)), steps=2)
    shared.add([wide])
    for seed in range(3, 20):
        start(seed)
        shared.advance([*running, wide], sum(each.call for each in (*running, wide)))
    assert wide.done


def test_a_generator_that_is_collected_while_another_leaves_breaks_nothing():
    engines = Engines()
    shared, one, two = driver(engines), image(seed=1), image(seed=2, chunks=1)
    two.latents = np.resize(two.latents, (4, 8, 16))
    shared.add([one, two])
    shared.advance([one], 0)
    shared.advance([two], 0)
    loop = engines.step.loops[0]
    close = loop.close

    def closing():
        loop.close = close
        shared.remove([two])  # what the collector does when it meets the other generator here
        close()

    loop.close = closing
    shared.remove([one])
    assert engines.users == 0


def test_nobody_waits_for_an_engine_that_opens_with_the_driver_s_lock_in_hand():
    """One thread opens an engine and collects a generator; another closes the last batch and gives the engine back."""
    engines, opening, closing = Engines(), threading.Event(), threading.Event()
    shared, one = driver(engines), image(seed=1, steps=2)

    def slow_close(loop):
        def close():
            closing.set()
            opening.wait(5)

        loop.close = close

    with_loops(engines, slow_close)
    shared.add([one])
    shared.advance([one], 0)

    def opener():
        with engines.lock:
            closing.wait(5)
            opening.set()
            time.sleep(0.1)
            shared.remove([image(seed=5)])  # the collector, here

    threads = [threading.Thread(target=work, daemon=True) for work in (opener, lambda: shared.advance([one], 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not [thread for thread in threads if thread.is_alive()], "each waits for the other's lock"


def test_an_image_that_was_given_up_half_way_has_no_preview():
    shared, made = driver(Engines()), image(steps=5)
    shared.add([made])
    shared.advance([made], 2)
    shared.remove([made])
    with pytest.raises(RequestError, match="given up"):
        shared.latents([made])


def test_a_preview_that_is_interrupted_tells_the_others_what_happened():
    engines, pool, bound = Engines(), Pool(4, 0), []
    make = engines.step.loop

    def lent(feeds, feedback):
        def made():
            bound.append(make(feeds, feedback))
            bound[-1].load = lambda feeds: None
            return bound[-1]

        return LentLoop(engines, pool, object(), made, feeds)

    engines.step.loop = lent
    shared, mine, theirs = driver(engines), image(seed=1), image(seed=2)
    shared.add([mine, theirs])
    shared.advance([mine], 0)

    def interrupted(*_):
        raise KeyboardInterrupt

    bound[-1].read = interrupted
    with pytest.raises(KeyboardInterrupt):
        shared.latents([mine])
    shared.remove([mine])
    with pytest.raises(Busy, match="interrupted"):
        shared.advance([theirs], 1)


def test_a_fork_is_told_instead_of_waiting_for_a_thread_that_is_not_there_e6(monkeypatch):
    shared, made = driver(Engines()), image()
    shared.add([made])
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(BackendUnavailable, match="forked"):
        shared.advance([made], 0)
    with pytest.raises(BackendUnavailable, match="forked"):
        shared.latents([made])


def test_images_around_those_faults_are_what_they_are_alone():
    shared, made = driver(Engines()), image(seed=1)
    shared.add([made])
    while not made.done:
        shared.advance([made], made.call)
    np.testing.assert_array_equal(made.latents, finished(FakeStep(), image(seed=1))[0])
