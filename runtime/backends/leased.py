"""What a pool lends: to one caller at a time, who gives it back, or loses it when an error went through it.

Knows nothing of libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from clipskip.errors import RequestError

from . import Array
from .pool import Closable, Pool

T = TypeVar("T", bound=Closable)


class Lease(Generic[T]):
    """A thing of the pool in use by one caller; it goes back once, or is closed where an error went through it."""

    def __init__(self, owner: object, pool: Pool[T], key: Hashable, make: Callable[[], T]) -> None:
        self._owner = owner  # an engine, which what it lends must not outlive
        self._pool, self._key = pool, key
        self._thing: T | None = pool.take(key, make)

    @contextmanager
    def guarded(self) -> Iterator[T]:
        """The thing, for work that may fail."""
        if self._thing is None:
            raise RequestError("this loop is closed")
        try:
            yield self._thing
        except BaseException:
            thing, self._thing = self._thing, None
            self._pool.discard(thing)
            raise

    def release(self) -> None:
        """Give the thing back. May be called twice."""
        if self._thing is not None:
            thing, self._thing = self._thing, None
            self._pool.give(self._key, thing)


class Bound(Closable, Protocol):
    """Buffers of fixed shapes bound to an engine: what the loops of both libraries lend."""

    def run(self, feeds: Mapping[str, Array]) -> None: ...

    def read(self, name: str) -> Array: ...


B = TypeVar("B", bound=Bound)


class LeasedLoop(Generic[B]):
    """A loop (see Loop) over lent buffers; the state stays on the device from the first run to the last."""

    def __init__(self, lease: Lease[B]) -> None:
        self._lease = lease

    def run(self, feeds: Mapping[str, Array]) -> None:
        """Send the changed inputs and run once."""
        with self._lease.guarded() as bound:
            bound.run(feeds)

    def read(self, name: str) -> Array:
        """A host copy of the input that feedback rewrites; waits for the device."""
        with self._lease.guarded() as bound:
            return bound.read(name)

    def close(self) -> None:
        """Give the buffers back. May be called twice."""
        self._lease.release()
