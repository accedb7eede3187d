"""ONNX Runtime where runs are captured as CUDA graphs: all work in one thread, and loops that are used again.

Knows nothing of how a session is opened or what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from clipskip.errors import Busy

from . import Array, Loop
from .pool import LentLoop, Pool

if TYPE_CHECKING:
    from .onnxruntime import OnnxRuntimeEngine

T = TypeVar("T")
NO_GRAPH = -1  # ONNX Runtime's number for a run that is neither captured nor replayed
CAPTURED_LOOPS = 4  # of one engine, in use or idle: a captured graph keeps its buffers and its scratch memory


@cache
def _worker() -> ThreadPoolExecutor:
    """The one thread of a process, whatever its devices, that works with sessions where CUDA graphs are captured.

    ONNX Runtime keeps captured graphs by thread, and it captures in CUDA's mode "global": as long as that lasts, an
    allocation in any other thread spoils the capture, on whichever device. So a thread for each would be wrong.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="onnxruntime-cuda")


def in_turn(work: Callable[..., T], *arguments: object) -> T:
    """Do work in that thread, and wait for it."""
    return _worker().submit(work, *arguments).result()


class SerialEngine:
    """An engine whose work is done in turn. Where its session captures, loops are lent and replayed as CUDA graphs."""

    def __init__(self, inner: OnnxRuntimeEngine, capturing: bool) -> None:
        self.artefact, self.nbytes = inner.artefact, inner.nbytes
        self._inner, self._capturing = inner, capturing
        self._pool: Pool[SerialLoop] = Pool(CAPTURED_LOOPS, timeout=0)
        self._numbers = count(1)  # of captured graphs; ONNX Runtime keeps 0 for itself

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return in_turn(self._inner.run, feeds)

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> Loop:
        """A loop that replays a graph; one more than there are graphs for goes on without."""
        if self._capturing:
            key = tuple((name, array.shape) for name, array in feeds.items()), tuple(feedback.items())
            with suppress(Busy):
                return LentLoop(
                    self, self._pool, key, lambda: SerialLoop(self._inner, feeds, feedback, next(self._numbers)), feeds
                )
        return SerialLoop(self._inner, feeds, feedback)

    def close(self) -> None:
        self._pool.close()
        self._inner.close()


class SerialLoop:
    """A loop whose work is done in turn."""

    def __init__(
        self, engine: OnnxRuntimeEngine, feeds: Mapping[str, Array], feedback: Mapping[str, str], graph: int = NO_GRAPH
    ) -> None:
        self._loop = in_turn(engine.loop, feeds, feedback, graph)

    def load(self, feeds: Mapping[str, Array]) -> None:
        in_turn(self._loop.load, feeds)

    def write(self, name: str, slot: int, array: Array) -> None:
        in_turn(self._loop.write, name, slot, array)

    def run(self, feeds: Mapping[str, Array]) -> None:
        in_turn(self._loop.run, feeds)

    def read(self, name: str, slot: int | None = None) -> Array:
        return in_turn(self._loop.read, name, slot)

    def close(self) -> None:
        in_turn(self._loop.close)
