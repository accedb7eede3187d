"""Engines on a GPU: each run or loop borrows an execution, which is made for its shapes and kept within a limit.

What differs between libraries is how a context is made. Knows nothing of files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias
from weakref import WeakSet

from clipskip.engines.manifest import Artefact

from . import Array
from .cuda import Cuda, Handle
from .execution import Context, Execution, Task
from .pool import LentLoop, Pool
from .signature import bind, shapes

Make: TypeAlias = Callable[[Task, Handle], Context]  # for a task, in a stream; DeviceOutOfMemory


@dataclass(frozen=True)
class Settings:
    """`contexts`: how many threads one engine serves at once, each with device memory of its own; `timeout`: seconds
    that a thread waits for one; `graphs`: replay a captured CUDA graph; `strict_device`: refuse an engine that was
    tuned on another model of GPU, where a warning is the default.
    """

    contexts: int = 4
    timeout: float = 60.0
    graphs: bool = True
    strict_device: bool = False


class Device:
    """A GPU and the executions of all engines that one backend has open there."""

    def __init__(self, cuda: Cuda, settings: Settings) -> None:
        self.cuda, self.settings = cuda, settings
        self._pools: WeakSet[Pool[Execution]] = WeakSet()
        self._lock = threading.Lock()

    def pool(self) -> Pool[Execution]:
        """For the executions of one engine. Idle ones of any engine make room where one lacks memory."""
        pool: Pool[Execution] = Pool(self.settings.contexts, self.settings.timeout, self.relieve)
        with self._lock:
            self._pools.add(pool)
        return pool

    def relieve(self) -> bool:
        """Give up the device memory of all idle executions; whether there were any."""
        with self._lock:
            pools = list(self._pools)
        given_up = [pool.give_up_idle() for pool in pools]
        return any(given_up)


class DeviceEngine:
    """One opened engine. Threads share it: each run or loop borrows an execution, a context with its buffers.

    `make` makes the contexts; `nbytes`: what it costs to keep it open; `command` builds it for other shapes.
    """

    def __init__(self, device: Device, artefact: Artefact, make: Make, nbytes: int, command: str | None = None) -> None:
        self.artefact, self.nbytes = artefact, nbytes
        self._device, self._contexts, self._command = device, make, command
        self._pool = device.pool()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name. RequestError, before any GPU work, for shapes that the engine was not built for."""
        task = self._task(feeds, {})
        with self._pool.use(task.key, lambda: self._make(task)) as execution:
            execution.run(feeds)
            return execution.outputs()

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> LentLoop[Execution]:
        """Borrow an execution until the loop is closed. RequestError as for `run`."""
        task = self._task(feeds, feedback)
        return LentLoop(self, self._pool, task.key, lambda: self._make(task), feeds)

    def close(self) -> None:
        """Free what is idle now, and what is in use when it comes back."""
        self._pool.close()

    def _task(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> Task:
        self._device.cuda.check()
        sizes = bind(self.artefact, feeds, self._command)
        return Task(self.artefact, sizes, shapes(self.artefact, sizes), feedback)

    def _make(self, task: Task) -> Execution:
        execution = Execution(self._device.cuda, partial(self._contexts, task), task)
        try:
            execution.warm_up(capture=self._device.settings.graphs)
        except BaseException:
            execution.close()
            raise
        return execution
