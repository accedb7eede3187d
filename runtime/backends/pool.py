"""A bounded set of executions: dear to make, for one thread at a time, kept by what they are good for; and their loan.

Knows nothing of libraries.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from clipskip.errors import Busy, Closed, DeviceOutOfMemory

from . import Array, Loop


class Bound(Loop, Protocol):
    """A loop that can be used again: with new values for all inputs it is as good as new."""

    def load(self, feeds: Mapping[str, Array]) -> None: ...


T = TypeVar("T", bound=Bound)
A = TypeVar("A")


def with_room(make: Callable[[], A], relieve: Callable[[], bool]) -> A:
    """What `make` makes; where the device has no memory for it, once more after `relieve` has given up what it can."""
    try:
        return make()
    except DeviceOutOfMemory:
        if not relieve():
            raise
    return make()


class Pool(Generic[T]):
    """At most `limit` things at once, in use or idle; `timeout` is how many seconds a thread waits for one.

    `relieve` is asked when the device has no memory for a new one: it gives up what it can, and says whether that was
    anything. By default that is what is idle here.
    """

    def __init__(self, limit: int, timeout: float, relieve: Callable[[], bool] | None = None) -> None:
        self._limit, self._timeout = limit, timeout
        self._relieve = relieve or self.give_up_idle
        self._idle: OrderedDict[T, Hashable] = OrderedDict()  # the least recently used first
        self._used = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def use(self, key: Hashable, make: Callable[[], T]) -> Iterator[T]:
        """A thing for `key` while the context lasts; it is closed when an error went through it."""
        thing = self.take(key, make)
        try:
            yield thing
        except BaseException:
            self.discard(thing)
            raise
        self.give(key, thing)

    def take(self, key: Hashable, make: Callable[[], T]) -> T:
        """A thing for `key`: an idle one, or a new one in the place of the idle one used least recently.

        Busy when all are in use for too long.
        """
        deadline = time.monotonic() + self._timeout
        with self._changed:
            while not self._closed and self._used >= self._limit:
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise Busy(f"all {self._limit} contexts were in use for {self._timeout:.0f} s", hint="try again")
            if self._closed:
                raise Closed("this engine is closed", hint="open the pipeline again")
            self._used += 1
            idle = next((thing for thing in reversed(self._idle) if self._idle[thing] == key), None)
            if idle is not None:
                del self._idle[idle]
                return idle
            self._close_idle(self._limit - self._used)
        try:
            return with_room(make, self._relieve)
        except BaseException:
            self._leave()
            raise

    def give(self, key: Hashable, thing: T) -> None:
        """Take a thing back, to be used again."""
        with self._changed:
            self._used -= 1
            self._idle[thing] = key
            if self._closed:
                self._close_idle(0)
            self._changed.notify()

    def discard(self, thing: T) -> None:
        """Take a thing back that something went wrong with."""
        self._leave()
        thing.close()

    def give_up_idle(self) -> bool:
        """Close what is idle, to make room; whether there was anything."""
        with self._changed:
            some = bool(self._idle)
            self._close_idle(0)
            return some

    def close(self) -> None:
        """Close what is idle, and the rest when it comes back. May be called twice."""
        with self._changed:
            self._closed = True
            self._close_idle(0)
            self._changed.notify_all()

    def _leave(self) -> None:
        """One place is free."""
        with self._changed:
            self._used -= 1
            self._changed.notify()

    def _close_idle(self, keep: int) -> None:
        while len(self._idle) > keep:
            self._idle.popitem(last=False)[0].close()


class LentLoop(Generic[T]):
    """A loop (see Loop) that a pool lends: given back when it is closed, and lost when an error goes through it.

    `owner` is an engine, which what it lends must not outlive.
    """

    def __init__(
        self, owner: object, pool: Pool[T], key: Hashable, make: Callable[[], T], feeds: Mapping[str, Array]
    ) -> None:
        self._owner, self._pool, self._key = owner, pool, key
        self._bound: T | None = pool.take(key, make)
        with self._guarded() as bound:
            bound.load(feeds)

    @contextmanager
    def _guarded(self) -> Iterator[T]:
        if self._bound is None:
            raise Closed("this loop is closed")
        try:
            yield self._bound
        except BaseException:
            bound, self._bound = self._bound, None
            self._pool.discard(bound)
            raise

    def write(self, name: str, slot: int, array: Array) -> None:
        with self._guarded() as bound:
            bound.write(name, slot, array)

    def run(self, feeds: Mapping[str, Array]) -> None:
        with self._guarded() as bound:
            bound.run(feeds)

    def read(self, name: str, slot: int | None = None) -> Array:
        with self._guarded() as bound:
            return bound.read(name, slot)

    def close(self) -> None:
        if self._bound is not None:
            bound, self._bound = self._bound, None
            self._pool.give(self._key, bound)
