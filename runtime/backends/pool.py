"""A bounded set of things that are dear to make and that one thread at a time may use, kept by what they are good for.

Knows nothing of what they are.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from clipskip.errors import Busy, DeviceOutOfMemory, RequestError


class Closable(Protocol):
    """What a pool may hold."""

    def close(self) -> None: ...


T = TypeVar("T", bound=Closable)


class Pool(Generic[T]):
    """At most `limit` things at once, in use or idle; `patience` is how many seconds a thread waits for one.

    `relieve` is asked when the device has no memory for a new one: it gives up what it can, and says whether that was
    anything. By default that is what is idle here.
    """

    def __init__(self, limit: int, patience: float, relieve: Callable[[], bool] | None = None) -> None:
        self._limit, self._patience = limit, patience
        self._relieve = relieve or self.give_up_idle
        self._idle: OrderedDict[T, Hashable] = OrderedDict()  # the least recently used first
        self._used = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, key: Hashable, make: Callable[[], T]) -> T:
        """A thing for `key`: an idle one, or a new one in the place of the idle one used least recently.

        Busy when all are in use for too long.
        """
        found = self._reserve(key)
        if found is not None:
            return found
        try:
            return self._made(make)
        except BaseException:
            with self._changed:
                self._used -= 1
                self._changed.notify()
            raise

    def _made(self, make: Callable[[], T]) -> T:
        try:
            return make()
        except DeviceOutOfMemory:
            if not self._relieve():
                raise
        return make()

    def give_up_idle(self) -> bool:
        """Close what is idle, to make room; whether there was anything."""
        with self._changed:
            found = bool(self._idle)
            self._close_idle(0)
            return found

    def give(self, key: Hashable, thing: T) -> None:
        """Take a thing back, to be used again."""
        with self._changed:
            self._used -= 1
            self._idle[thing] = key
            self._close_idle(0 if self._closed else self._limit)
            self._changed.notify()

    def discard(self, thing: T) -> None:
        """Take a thing back that something went wrong with."""
        with self._changed:
            self._used -= 1
            self._changed.notify()
        thing.close()

    def close(self) -> None:
        """Close what is idle, and the rest when it comes back. May be called twice."""
        with self._changed:
            self._closed = True
            self._close_idle(0)
            self._changed.notify_all()

    def _reserve(self, key: Hashable) -> T | None:
        deadline = time.monotonic() + self._patience
        with self._changed:
            while True:
                if self._closed:
                    raise RequestError("this engine is closed", hint="open the pipeline again")
                if self._used < self._limit:
                    break
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise Busy(f"all {self._limit} contexts were in use for {self._patience:.0f} s", hint="try again")
            self._used += 1
            found = next((thing for thing in reversed(self._idle) if self._idle[thing] == key), None)
            if found is not None:
                del self._idle[found]
            else:
                self._close_idle(self._limit - self._used)
            return found

    def _close_idle(self, keep: int) -> None:
        while len(self._idle) > keep:
            self._idle.popitem(last=False)[0].close()
