"""Things that are dear to make and that one thread at a time may use."""

from __future__ import annotations

import random
import threading
import time

import pytest

from clipskip.backends.pool import Pool
from clipskip.errors import Busy, Closed, DeviceOutOfMemory


class Thing:
    """Remembers whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True


def fail() -> Thing:
    raise DeviceOutOfMemory("none left")


def test_what_was_given_back_is_used_again_for_the_same_key() -> None:
    pool: Pool[Thing] = Pool(2, timeout=0)
    first = pool.take("a", Thing)
    pool.give("a", first)
    assert pool.take("a", Thing) is first
    assert pool.take("a", Thing) is not first


def test_a_new_key_takes_the_place_of_the_thing_unused_for_longest() -> None:
    pool: Pool[Thing] = Pool(2, timeout=0)
    things = {key: pool.take(key, Thing) for key in "ab"}
    pool.give("b", things["b"])
    pool.give("a", things["a"])
    pool.take("c", Thing)
    assert things["b"].closed
    assert not things["a"].closed


def test_memory_held_by_idle_things_is_given_up_for_a_new_one() -> None:
    pool: Pool[Thing] = Pool(2, timeout=0)
    idle = pool.take("a", Thing)
    pool.give("a", idle)

    def make() -> Thing:
        return Thing() if idle.closed else fail()

    assert not pool.take("b", make).closed


def test_a_failure_blocks_nobody() -> None:
    pool: Pool[Thing] = Pool(2, timeout=0)
    idle = pool.take("a", Thing)
    pool.give("a", idle)
    for _ in range(5):
        with pytest.raises(DeviceOutOfMemory):
            pool.take("b", fail)
    assert idle.closed
    pool.take("b", Thing)
    pool.take("b", Thing)
    with pytest.raises(Busy):
        pool.take("b", Thing)


def test_any_failure_frees_the_place() -> None:
    pool: Pool[Thing] = Pool(1, timeout=0)
    with pytest.raises(KeyError):
        pool.take("a", lambda: {}["bug"])
    pool.take("a", Thing)


def test_a_waiting_thread_gets_what_comes_back() -> None:
    pool: Pool[Thing] = Pool(1, timeout=30)
    thing = pool.take("a", Thing)
    found: list[Thing] = []
    thread = threading.Thread(target=lambda: found.append(pool.take("a", Thing)))
    thread.start()
    time.sleep(0.05)
    assert not found
    pool.give("a", thing)
    thread.join()
    assert found == [thing]


def test_a_closed_pool_closes_what_is_idle_now_and_the_rest_when_it_comes_back() -> None:
    pool: Pool[Thing] = Pool(3, timeout=0)
    used, idle, broken = (pool.take("a", Thing) for _ in range(3))
    pool.give("a", idle)
    pool.close()
    pool.close()
    assert idle.closed
    assert not used.closed
    pool.give("a", used)
    pool.discard(broken)
    assert used.closed
    assert broken.closed
    with pytest.raises(Closed, match="closed"):
        pool.take("a", Thing)


def test_a_thread_that_waits_when_the_pool_closes_is_told_so() -> None:
    pool: Pool[Thing] = Pool(1, timeout=30)
    pool.take("a", Thing)
    told: list[BaseException] = []

    def wait() -> None:
        try:
            pool.take("a", Thing)
        except Closed as error:
            told.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    pool.close()
    thread.join(10)
    assert len(told) == 1


def test_what_is_in_use_and_what_is_idle_are_never_more_than_the_limit() -> None:
    pool: Pool[Thing] = Pool(3, timeout=0)
    draw, made, used = random.Random(0), [], []  # type: ignore[var-annotated]

    def make() -> Thing:
        made.append(Thing())
        return made[-1]

    for _ in range(500):
        if used and draw.random() < 0.5:
            pool.give(*used.pop(draw.randrange(len(used))))
        elif len(used) < 3:
            key = draw.choice("abcde")
            used.append((key, pool.take(key, make)))
        alive = sum(not thing.closed for thing in made)
        assert alive <= 3
    assert alive == 3, "and it keeps what it may"


def test_what_an_error_went_through_is_closed_and_not_used_again() -> None:
    pool: Pool[Thing] = Pool(1, timeout=0)
    with pool.use("a", Thing) as first:
        pass
    with pytest.raises(KeyError), pool.use("a", fail) as second:
        raise KeyError
    assert second is first
    assert first.closed
    assert pool.take("a", Thing) is not first
