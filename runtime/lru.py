"""A small cache bounded by bytes, for contexts and opened engines. Knows nothing of what it holds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass
class _Entry(Generic[V]):
    value: V
    size: int
    users: int = 0


class Closed(Exception):
    """A lease from a cache that was closed."""


class Lru(Generic[V]):
    """Keeps the values used last, up to `budget` bytes; what is leased or newest stays even when it is larger.

    Thread-safe. `dispose` is called for a value that is dropped, and never while somebody leases it.
    """

    def __init__(self, budget: int, dispose: Callable[[V], None] = lambda value: None) -> None:
        self._budget = budget
        self._dispose = dispose
        self._entries: OrderedDict[Hashable, _Entry[V]] = OrderedDict()
        self._lock = threading.RLock()
        self._closed = False

    @contextmanager
    def lease(self, key: Hashable, make: Callable[[], tuple[V, int]]) -> Iterator[V]:
        """The value under `key`; when it is not there, `make()` gives it and its size, once for all threads."""
        with self._lock:
            if self._closed:
                raise Closed
            if key not in self._entries:
                self._entries[key] = _Entry(*make())
            entry = self._entries[key]
            entry.users += 1
            self._entries.move_to_end(key)
            self._evict()
        try:
            yield entry.value
        finally:
            with self._lock:
                entry.users -= 1
                self._evict()
                self._dispose_if_closed()

    def get(self, key: Hashable) -> V | None:
        """The value under `key` if it is there."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key].value

    def put(self, key: Hashable, value: V, size: int) -> None:
        """Remember a value; one that stood under the same key is replaced."""
        with self._lock:
            self._entries[key] = _Entry(value, size)
            self._entries.move_to_end(key)
            self._evict()

    def close(self) -> None:
        """Dispose of everything, of what is leased when it is given back; further leases raise Closed."""
        with self._lock:
            self._closed = True
            self._dispose_if_closed()

    def keys(self) -> list[Hashable]:
        """What is held, the least recently used first."""
        with self._lock:
            return list(self._entries)

    def _dispose_if_closed(self) -> None:
        for key in [key for key, entry in self._entries.items() if self._closed and not entry.users]:
            self._dispose(self._entries.pop(key).value)

    def _evict(self) -> None:
        excess = sum(entry.size for entry in self._entries.values()) - self._budget
        for key in list(self._entries)[:-1]:
            if excess <= 0:
                return
            if not self._entries[key].users:
                entry = self._entries.pop(key)
                excess -= entry.size
                self._dispose(entry.value)
