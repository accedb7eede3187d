"""Runs an opened session of ONNX Runtime: once, or in a loop whose buffers stay on the device.

Knows nothing of artefacts and of how a session is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import Any

import numpy as np

from clipskip.errors import BackendUnavailable, ClipskipError, DeviceOutOfMemory

from . import Array
from .providers import Provider

NO_GRAPH = -1  # ONNX Runtime's number for a run that is neither captured nor replayed


@contextmanager
def translated(failure: Callable[[str], ClipskipError]) -> Iterator[None]:
    """ONNX Runtime's own errors as ours: its types all live in one module, but for the bindings' RuntimeError."""
    try:
        yield
    except MemoryError as error:
        raise DeviceOutOfMemory("there is not enough memory for this request", hint="ask for less") from error
    except Exception as error:
        if type(error) is not RuntimeError and type(error).__module__.partition(".")[0] != "onnxruntime":
            raise
        raise failure(str(error).strip()) from error


def _failed(said: str) -> ClipskipError:
    hint = "where memory may have run out, ask for smaller pictures or fewer at once"
    return BackendUnavailable(f"ONNX Runtime failed while it ran a graph: {said}", hint=hint)


class Session:
    """An InferenceSession. With `capturing` it serves one thread at a time, as ONNX Runtime asks then."""

    def __init__(self, ort: Any, session: Any, provider: Provider, capturing: bool) -> None:
        self.capturing = capturing
        self._ort, self._session, self._provider = ort, session, provider
        self._turn: AbstractContextManager[Any] = RLock() if capturing else nullcontext()

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs called `names`, on the host."""
        with self.running():
            return dict(zip(names, self._session.run(names, dict(feeds), self._options(NO_GRAPH)), strict=True))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wait for our turn, where turns are taken; errors come out as ours."""
        with self._turn, translated(_failed):
            yield

    def binding(self) -> Any:
        """An IOBinding."""
        return self._session.io_binding()

    def execute(self, binding: Any, graph: int) -> None:
        """Run what is bound; with a `graph` number, by capturing it first and replaying it later."""
        self._session.run_with_iobinding(binding, self._options(graph))

    def release(self, graph: int) -> None:
        """Forget a captured graph."""
        with self.running():
            self._session.release_captured_graph(graph)

    def buffer(self, array: Array) -> Any:
        """A copy of the array on the device."""
        return self._ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), *self._provider.device)

    def _options(self, graph: int) -> Any:
        if not self.capturing:
            return None
        made = self._ort.RunOptions()
        made.add_run_config_entry(self._provider.graph_number, str(graph))
        return made


class OnnxRuntimeLoop:
    """Inputs bound once on the device; an output and the input that it feeds swap buffers after each run.

    So there are two sets of addresses, and two `graphs` to capture: one for every even run, one for every odd run.
    """

    def __init__(
        self,
        session: Session,
        feeds: Mapping[str, Array],
        feedback: Mapping[str, str],
        graphs: tuple[int, int] = (NO_GRAPH, NO_GRAPH),
    ) -> None:
        self._session, self._feedback, self._graphs, self._odd = session, dict(feedback), graphs, 0
        self._captured: set[int] = set()
        with session.running():
            self._binding = session.binding()
            self._inputs = {name: session.buffer(array) for name, array in feeds.items()}
            self._outputs = {name: session.buffer(feeds[source]) for name, source in feedback.items()}
            for name, value in self._inputs.items():
                self._binding.bind_ortvalue_input(name, value)

    def load(self, feeds: Mapping[str, Array]) -> None:
        """New values for some inputs."""
        with self._session.running():
            for name, array in feeds.items():
                self._inputs[name].update_inplace(np.ascontiguousarray(array))

    def run(self, feeds: Mapping[str, Array]) -> None:
        """Rewrite the named inputs and run once."""
        self.load(feeds)
        with self._session.running():
            for name, value in self._outputs.items():
                self._binding.bind_ortvalue_output(name, value)
            self._captured.add(self._graphs[self._odd])
            self._session.execute(self._binding, self._graphs[self._odd])
        for name, source in self._feedback.items():
            self._inputs[source], self._outputs[name] = self._outputs[name], self._inputs[source]
            self._binding.bind_ortvalue_input(source, self._inputs[source])
        self._odd = 1 - self._odd

    def read(self, name: str) -> Array:
        """A host copy of an input as the last run left it."""
        with self._session.running():
            return np.array(self._inputs[name].numpy())

    def close(self) -> None:
        """Give the buffers back. May be called twice."""
        for graph in self._captured - {NO_GRAPH}:
            self._session.release(graph)
        self._captured.clear()
        self._binding = None
        self._inputs, self._outputs = {}, {}
