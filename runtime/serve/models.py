"""The stores that are served: opened on demand, within a budget of bytes, and anew when they were built anew."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from clipskip.engines.manifest import Manifest
from clipskip.engines.store import MANIFEST, read_manifest
from clipskip.errors import Busy, ClipskipError, RequestError, StoreError
from clipskip.pipeline import Pipeline
from clipskip.request import unknown
from clipskip.scheduler import Queue

from .answers import Refusal

Opener: TypeAlias = "Callable[[Path], Pipeline]"
Stamp: TypeAlias = "tuple[int, ...]"
T = TypeVar("T")

HUNG = 600.0  # seconds
LOG = logging.getLogger("clipskip.serve")


@dataclass(eq=False)
class Loaded:
    """An opened store, and how many requests use it. `retired`: another one has its place."""

    pipe: Pipeline
    stamp: Stamp | None
    size: int
    users: int = 0
    used: float = field(default_factory=time.monotonic)
    retired: bool = False


class Opened(Protocol):
    """What takes the requests for one store."""

    @property
    def scheduler(self) -> Queue: ...


class Stores(ABC):
    """Stores by name, wherever they are opened. All methods but `close` belong to one event loop."""

    def __init__(self, stores: Iterable[Path]) -> None:
        self.paths: dict[str, Path] = {}
        for path in stores:
            if (name := path.resolve().name) in self.paths:
                raise RequestError(f"two stores are named {name}: {self.paths[name]} and {path}", field="store")
            read_manifest(self.paths.setdefault(name, path))
        if not self.paths:
            raise RequestError("there is no store to serve", field="store")
        self.lost: str | None = None  # why no picture can be made any more
        self.loaded: dict[str, Loaded] = {}  # in this process
        self._seen: dict[str, tuple[Stamp | None, Manifest]] = {}

    @abstractmethod
    def use(self, asked: str | None = None) -> AbstractAsyncContextManager[Opened]:
        """What takes the requests for a store, opened if need be, and kept while it is used. Busy; Refusal."""

    @abstractmethod
    async def ask(self, asked: str | None, question: Callable[..., T], *about: Any) -> T:
        """What `question(pipeline, *about)` says of a store, in a thread where it is open. As `use`, and its errors."""

    @abstractmethod
    def is_open(self, name: str) -> bool:
        """Whether a store was opened for a request."""

    @abstractmethod
    async def figures(self, own: bytes) -> bytes:
        """This process's figures in Prometheus' form, and those of others that make its pictures."""

    @abstractmethod
    def close(self) -> None:
        """Close all that is open."""

    def name(self, asked: str | None) -> str:
        """The store that a request names, or the first one. Refusal (404) for one that is not there."""
        if asked is None:
            return next(iter(self.paths))
        if asked not in self.paths:
            error = unknown("model", asked, dict(zip(self.paths, self.paths, strict=True)))
            raise Refusal(404, error.message, field="model", hint=error.hint)
        return asked

    def manifests(self) -> Mapping[str, Manifest | StoreError]:
        """What each store holds now, or why that cannot be said; read again where it changed."""
        found: dict[str, Manifest | StoreError] = {}
        for name, path in self.paths.items():
            stamp, seen = stamp_of(path), self._seen.get(name)
            try:
                found[name] = manifest = seen[1] if seen and seen[0] == stamp else read_manifest(path)
                self._seen[name] = stamp, manifest
            except StoreError as error:
                found[name] = error
        return found

    def trouble(self) -> str | None:
        """Why this server should get no requests, if so: a lost or hung device, or no store that can be read."""
        errors = [each for each in self.manifests().values() if isinstance(each, StoreError)]
        return self.failure() or (errors[0].message if len(errors) == len(self.paths) else None)

    def failure(self) -> str | None:
        """Why this process can make no picture any more, if so: its device is lost, or hangs."""
        begun = [each.pipe.driver.tally.since for each in list(self.loaded.values())]  # other threads write both
        if any(since is not None and time.perf_counter() - since > HUNG for since in begun):
            return f"a call of the network has been running for more than {HUNG:.0f} s"
        return self.lost


class Models(Stores):
    """Stores that are opened in this process.

    `budget`: bytes that the files of the open ones may have; None: as many as there are. The least recently used one
    that nobody uses is closed to make room.
    """

    def __init__(self, stores: Iterable[Path], opener: Opener, budget: int | None = None) -> None:
        super().__init__(stores)
        for path in self.paths.values():
            if (size := size_of(read_manifest(path))) > (budget or size):
                message = (
                    f"{path} has {size / 1e6:.0f} MB of engines, and all models may have {(budget or 0) / 1e6:.0f}"
                )
                raise RequestError(message, field="models_memory", hint="give it more")
        self._opener, self._budget, self._lock = opener, budget, asyncio.Lock()
        self._refused: dict[str, Stamp | None] = {}  # what could not be opened in place of an older one

    @asynccontextmanager
    async def use(self, asked: str | None = None) -> AsyncIterator[Pipeline]:
        """The pipeline of a store, opened if need be, and kept while it is used. As `clipskip.open`; Busy; Refusal."""
        name = self.name(asked)
        async with self._lock if self._stale(name) else nullcontext():  # who finds his store open does not wait
            loaded = self.loaded.get(name)
            if loaded is None or self._stale(name):
                loaded = await self._opened(name, loaded)
            loaded.users += 1
        try:
            yield loaded.pipe
        finally:
            loaded.users, loaded.used = loaded.users - 1, time.monotonic()
            if loaded.retired and not loaded.users:
                _close_beside(loaded)

    async def ask(self, asked: str | None, question: Callable[..., T], *about: Any) -> T:
        """Ask the pipeline itself."""
        async with self.use(asked) as pipe:
            return await asyncio.to_thread(question, pipe, *about)

    def is_open(self, name: str) -> bool:
        """Whether it is now."""
        return name in self.loaded

    async def figures(self, own: bytes) -> bytes:
        """There is no other process."""
        return own

    def _stale(self, name: str) -> bool:
        """Whether a store is to be opened: it is not, or was built anew."""
        stamp, loaded = stamp_of(self.paths[name]), self.loaded.get(name)
        return loaded is None or (stamp not in (loaded.stamp, None) and self._refused.get(name) != stamp)

    async def _opened(self, name: str, old: Loaded | None) -> Loaded:
        """A store opened, in place of what it was before; that goes on where the new one cannot be opened."""
        path = self.paths[name]
        stamp = stamp_of(path)
        try:
            size = size_of(await asyncio.to_thread(read_manifest, path))
            self._make_room(size, name)
            pipe = await asyncio.to_thread(self._opener, path)
        except ClipskipError as error:
            if old is None:
                raise
            LOG.warning("%s was built anew and cannot be opened; the older one goes on: %s", name, error.message)
            if not isinstance(error, Busy):  # there may be room when the next request comes
                self._refused[name] = stamp
            return old
        LOG.info("%s is open", name)
        if old is not None:
            self._retire(name)
        loaded = self.loaded[name] = Loaded(pipe, stamp, size)
        return loaded

    def _make_room(self, size: int, name: str) -> None:
        while self._budget is not None:
            others = {key: each for key, each in self.loaded.items() if key != name}
            if sum(each.size for each in others.values()) + size <= self._budget:
                return
            idle = [key for key, each in others.items() if not each.users]
            if not idle:
                raise Busy("all open models are in use, and memory has no room for another", hint="try again later")
            self._retire(min(idle, key=lambda key: others[key].used))

    def _retire(self, name: str) -> None:
        """Close a pipeline when its last request is done."""
        loaded = self.loaded.pop(name)
        loaded.retired = True
        if not loaded.users:
            _close_beside(loaded)

    def close(self) -> None:
        """Close all of them."""
        while self.loaded:
            self.loaded.popitem()[1].pipe.close()


def _close_beside(loaded: Loaded) -> None:
    """Close in a thread: no request waits for it, and none is interrupted with its task."""
    asyncio.get_running_loop().run_in_executor(None, loaded.pipe.close)


def stamp_of(path: Path) -> Stamp | None:
    """What changes when a store is published anew; None where it is not there."""
    try:
        status = (path / MANIFEST).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def size_of(manifest: Manifest) -> int:
    """Bytes of all engines, each file once."""
    return sum({each.path: each.size for artefact in manifest.artefacts for each in artefact.files}.values())
