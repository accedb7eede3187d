"""Runs an opened session of ONNX Runtime: once, or in a loop whose buffers stay on the device.

Knows nothing of artefacts and of how a session is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, TypeVar

import numpy as np

from clipskip.errors import BackendUnavailable, ClipskipError, DeviceOutOfMemory

from . import Array
from .providers import Provider

T = TypeVar("T")
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


@cache
def _worker() -> ThreadPoolExecutor:
    """The one thread of a process that runs sessions where CUDA graphs are captured.

    ONNX Runtime keeps captured graphs by thread, and a capture is spoilt by whatever else allocates on the device.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="onnxruntime-cuda")


def serially(exclusive: bool, work: Callable[[], T]) -> T:
    """Do work here and now, or, where it is exclusive, in the one thread that does such work."""
    return _worker().submit(work).result() if exclusive else work()


class Session:
    """An InferenceSession. `exclusive`: its runs wait for each other and for those of all exclusive sessions.

    `capturing`: it was opened so that runs can be captured as CUDA graphs.
    """

    def __init__(self, ort: Any, session: Any, provider: Provider, exclusive: bool, capturing: bool) -> None:
        self.capturing = capturing
        self._ort, self._session, self._provider, self._exclusive = ort, session, provider, exclusive

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs called `names`, on the host."""
        results = self.call(lambda: self._session.run(names, dict(feeds), self._options(NO_GRAPH)))
        return dict(zip(names, results, strict=True))

    def call(self, work: Callable[[], T]) -> T:
        """Do work with this session where such work is done; errors come out as ours."""
        with translated(_failed):
            return serially(self._exclusive, work)

    def binding(self) -> Any:
        """An IOBinding."""
        return self._session.io_binding()

    def execute(self, binding: Any, graph: int) -> None:
        """Run what is bound; with a `graph` number, by capturing it first and replaying it later."""
        self._session.run_with_iobinding(binding, self._options(graph))

    def release(self, graph: int) -> None:
        """Forget a captured graph."""
        self._session.release_captured_graph(graph)

    def buffer(self, array: Array) -> Any:
        """A copy of the array on the device."""
        return self._ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), *self._provider.device)

    def _options(self, graph: int) -> Any:
        if not self.capturing:
            return None
        made = self._ort.RunOptions()
        made.add_run_config_entry("gpu_graph_id", str(graph))
        return made


class OnnxRuntimeLoop:
    """All inputs and outputs bound once on the device, for many runs; with a number, replayed as a CUDA graph.

    After a run an output is copied to the input that it feeds: were the two to swap places, no graph would fit.
    """

    def __init__(
        self, session: Session, feeds: Mapping[str, Array], feedback: Mapping[str, str], graph: int = NO_GRAPH
    ) -> None:
        self._session, self._feedback, self._graph, self._captured = session, dict(feedback), graph, False
        session.call(lambda: self._bind(feeds))

    def _bind(self, feeds: Mapping[str, Array]) -> None:
        self._binding = self._session.binding()
        self._inputs = {name: self._session.buffer(array) for name, array in feeds.items()}
        self._outputs = {name: self._session.buffer(feeds[source]) for name, source in self._feedback.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def load(self, feeds: Mapping[str, Array]) -> None:
        """New values for some inputs."""
        self._session.call(lambda: self._send(feeds))

    def run(self, feeds: Mapping[str, Array]) -> None:
        """Rewrite the named inputs and run once."""
        self._session.call(lambda: self._step(feeds))

    def read(self, name: str) -> Array:
        """A host copy of an input as the last run left it."""
        return self._session.call(lambda: np.array(self._inputs[name].numpy()))

    def close(self) -> None:
        """Give the buffers back. May be called twice."""
        if self._captured:
            with suppress(ClipskipError):  # after a failure of the device there is nothing to forget
                self._session.call(lambda: self._session.release(self._graph))
        self._captured, self._binding = False, None
        self._inputs, self._outputs = {}, {}

    def _send(self, feeds: Mapping[str, Array]) -> None:
        for name, array in feeds.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(array))

    def _step(self, feeds: Mapping[str, Array]) -> None:
        self._send(feeds)
        self._session.execute(self._binding, self._graph)
        self._captured = self._graph != NO_GRAPH
        for name, source in self._feedback.items():
            self._inputs[source].update_inplace(self._outputs[name])
