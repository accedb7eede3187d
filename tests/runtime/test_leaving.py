"""Pictures that are given up at the very moment in which somebody waits for them, or in which they fail."""

import asyncio
import time

import pytest
from driving import Engines, driver, sized
from fake_step import image

import clipskip
from clipskip.errors import BackendUnavailable, NumericalError

SMALL = {"width": 64, "height": 64, "cfg": 4.0}


def test_who_waits_for_an_image_that_was_removed_is_let_go():
    shared, gone = driver(Engines()), image()
    shared.add([gone])
    shared.remove([gone])
    shared.advance([gone], 0)
    assert not gone.call


def test_who_waits_for_an_image_that_is_removed_during_the_call_of_another_kind_is_let_go():
    engines = Engines()
    shared, gone, other = driver(engines), image(steps=5), sized(8, 16)
    shared.add([other])
    loop = engines.step.loop

    def leaving(*arguments):
        shared.remove([gone])
        return loop(*arguments)

    engines.step.loop = leaving
    shared.advance([gone], 0)
    assert (gone.call, other.call) == (0, 1)


@pytest.fixture(scope="module")
def pipe(sample_store):
    with clipskip.open(sample_store) as pipe:
        yield pipe


def leave(generation):
    """From another thread than the event loop's."""
    generation._loop.call_soon_threadsafe(generation.cancel)
    deadline = time.monotonic() + 60
    while generation.state != "ended" and time.monotonic() < deadline:
        time.sleep(0.001)


def test_a_request_that_is_cancelled_just_before_its_call_holds_up_nobody(pipe, monkeypatch):
    advance, started = pipe.driver.advance, []

    def cancelled_before(images, calls):
        if len(started) == 1:
            leave(started.pop())
        return advance(images, calls)

    async def two():
        started.append(first := pipe.generate("a ring", steps=50, **SMALL))
        with pytest.raises(asyncio.CancelledError):
            await first
        return await pipe.generate("a star", steps=2, timeout=240, **SMALL)

    monkeypatch.setattr(pipe.driver, "advance", cancelled_before)
    assert len(asyncio.run(two()).images) == 1


def test_a_request_whose_event_loop_is_closed_is_given_up(pipe):
    async def leave():
        pipe.generate("a ring", steps=9000, **SMALL)

    asyncio.run(leave())
    deadline = time.monotonic() + 60
    while pipe.scheduler.queued + pipe.scheduler.running:
        assert time.monotonic() < deadline, "it is kept for ever"
        time.sleep(0.01)
    assert not pipe.driver.waiting


def test_generate_after_a_fork_is_refused_and_does_not_wait_for_threads_that_are_not_there(pipe, monkeypatch):
    async def one():
        return await pipe.generate("a ring", steps=1, timeout=240, **SMALL)

    asyncio.run(one())
    monkeypatch.setattr("os.getpid", lambda: 0)
    with pytest.raises(BackendUnavailable, match="forked"):
        asyncio.run(one())
    assert not pipe.scheduler.queued


def test_what_goes_wrong_with_a_request_that_has_just_left_ends_no_other(pipe, monkeypatch):
    advance, started = pipe.driver.advance, []

    def failing(images, calls):
        if started and len(images) == 2:
            leave(started.pop())
            raise NumericalError("of the one that left")
        return advance(images, calls)

    async def two():
        started.append(pipe.generate("a ring", steps=50, seed=1, **SMALL))
        return await pipe.generate("a star", steps=9, seed=2, timeout=240, **SMALL)

    monkeypatch.setattr(pipe.driver, "advance", failing)
    assert len(asyncio.run(two()).images) == 1
    assert not started
