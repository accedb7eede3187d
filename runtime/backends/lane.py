"""One execution context with everything it needs to run at fixed shapes: memory, stream, and a captured graph.

One user at a time. Knows nothing of pools, files or what the engine computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipskip.engines.manifest import Artefact
from clipskip.engines.shapes import Shape
from clipskip.errors import BackendUnavailable, ClipskipError

from . import Array
from .cuda import ALIGNMENT, Cuda, Handle
from .staging import Inputs, nbytes, offsets, views


@dataclass(frozen=True)
class Task:
    """What a lane is made for: an engine's signature, the shape of every port, and outputs that become inputs."""

    artefact: Artefact
    shapes: Mapping[str, Shape]
    feedback: Mapping[str, str]


class Lane:
    """Buffers and stream around `context` (TensorRT's IExecutionContext). `complaints` gives TensorRT's own words."""

    def __init__(self, cuda: Cuda, context: Any, task: Task, complaints: Callable[[], str]) -> None:
        self._cuda, self._context, self._task, self._complaints = cuda, context, task, complaints
        self._graph: Handle | None = None
        with ExitStack() as undo:
            self._allocate(undo)
            self._bind(undo)
            self._resources = undo.pop_all()

    def _allocate(self, undo: ExitStack) -> None:
        cuda, task = self._cuda, self._task
        self._stream = cuda.stream()
        undo.callback(cuda.close_stream, self._stream)
        self._inputs = Inputs(cuda, self._stream, task.artefact.inputs, task.shapes, task.feedback.values())
        undo.callback(self._inputs.close)
        self._at, self._results_size = offsets(task.artefact.outputs, task.shapes)
        self._results = cuda.allocate(self._results_size)
        undo.callback(cuda.free, self._results)
        self._landing = cuda.pin(self._results_size)  # an input that feedback rewrites has the size of its output
        undo.callback(cuda.unpin, self._landing)

    def _bind(self, undo: ExitStack) -> None:
        """Tell the context all shapes and addresses, and give it the scratch memory that these shapes need."""
        context, artefact = self._context, self._task.artefact
        for port in artefact.inputs:
            self._expect(context.set_input_shape(port.name, self._task.shapes[port.name]), f"a shape of {port.name}")
            self._expect(context.set_tensor_address(port.name, self._inputs.address(port.name)), port.name)
        for port in artefact.outputs:
            self._expect(context.set_tensor_address(port.name, self._results + self._at[port.name]), port.name)
        size = max(int(context.update_device_memory_size_for_shapes()), ALIGNMENT)
        scratch = self._cuda.allocate(size)
        undo.callback(self._cuda.free, scratch)
        context.set_device_memory(scratch, size)

    def warm_up(self) -> None:
        """Run once on zeros, so that kernels are compiled and TensorRT's own memory is there."""
        self._inputs.clear()
        self._enqueue()
        self._settle()

    def capture(self, capturable: Callable[[Any, int], bool]) -> None:
        """Capture a run as a graph to replay. Where that cannot be, runs go on without: slower, with the same results.

        `capturable` says whether TensorRT lets a run of this context be captured in this stream.
        """
        if capturable(self._context, int(self._stream)):
            self._graph = self._cuda.capture(self._stream, self._enqueue)
        if self._graph is not None:
            self._resources.callback(self._cuda.close_graph, self._graph)

    def load(self, feeds: Mapping[str, Array]) -> None:
        """Enqueue a copy of inputs."""
        self._inputs.send(feeds)

    def run(self, feeds: Mapping[str, Array]) -> None:
        """Enqueue one copy of the changed inputs and one run, without waiting."""
        self._cuda.check()
        self._inputs.send(feeds)
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._enqueue()

    def outputs(self) -> dict[str, Array]:
        """All outputs of the last run, on the host; waits for the device."""
        self._cuda.check()
        self._cuda.download(self._landing.address, self._results, self._results_size, self._stream)
        self._settle()
        landed = views(self._landing.array, self._task.artefact.outputs, self._task.shapes, self._at)
        return {name: np.array(array) for name, array in landed.items()}

    def read(self, name: str) -> Array:
        """An input as feedback has left it, on the host; waits for the device."""
        self._cuda.check()
        port = next(port for port in self._task.artefact.inputs if port.name == name)
        size = nbytes(port, self._task.shapes[name])
        self._cuda.download(self._landing.address, self._inputs.address(name), size, self._stream)
        self._settle()
        return np.array(views(self._landing.array, [port], self._task.shapes, {name: 0})[name])

    def close(self) -> None:
        """Wait for what was enqueued and give everything back, the context first."""
        with suppress(ClipskipError):
            self._cuda.wait(self._stream)
        self._context = None
        self._resources.close()

    def _enqueue(self) -> None:
        self._expect(self._context.execute_async_v3(int(self._stream)), "to run")
        for output, source in self._task.feedback.items():
            port = next(port for port in self._task.artefact.outputs if port.name == output)
            size = nbytes(port, self._task.shapes[output])
            self._cuda.move(self._inputs.address(source), self._results + self._at[output], size, self._stream)

    def _settle(self) -> None:
        self._cuda.wait(self._stream)
        self._inputs.arrived()

    def _expect(self, accepted: bool, what: str) -> None:
        """TensorRT answers False and puts the reason into its log; when the device is lost, that is the reason."""
        if not accepted:
            self._cuda.probe()
            role = str(self._task.artefact.role)
            raise BackendUnavailable(f"TensorRT refused {what} ({role}): {self._complaints()}", field=role)
