"""One execution: all that it takes to run a network at fixed shapes - memory, stream, and a captured graph.

One user at a time. Knows nothing of libraries, pools, files or what the engine computes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from clipskip.engines.manifest import Artefact, Port
from clipskip.engines.shapes import Shape
from clipskip.errors import ClipskipError

from . import Array
from .cuda import ALIGNMENT, Cuda, Handle
from .signature import check_like

ROUNDS = 4  # the ring holds this many copies of the whole block: the usual changes of some dozens of steps


class Layout:
    """Where the arrays of some ports lie in one block of bytes, each of them aligned.

    The smallest come first, for they are the ones that change with every step; of equal ones the last of the signature.
    Those in `last` come behind all others.
    """

    def __init__(self, ports: Sequence[Port], shapes: Mapping[str, Shape], last: Collection[str] = ()) -> None:
        self._kinds = {port.name: (np.dtype(port.dtype), shapes[port.name]) for port in reversed(ports)}
        self._sizes = {name: dtype.itemsize * prod(shape) for name, (dtype, shape) in self._kinds.items()}
        self._starts: dict[str, int] = {}
        self.size = 0
        for name in sorted(self._sizes, key=lambda name: (name in last, self._sizes[name])):
            self._starts[name] = self.size
            self.size += -(-self._sizes[name] // ALIGNMENT) * ALIGNMENT

    def views(self, block: Array) -> dict[str, Array]:
        """The arrays that lie in a block."""
        return {
            name: block[self._starts[name] :][: self._sizes[name]].view(dtype).reshape(shape)
            for name, (dtype, shape) in self._kinds.items()
        }

    def span(self, name: str, slot: int | None = None) -> tuple[int, int]:
        """Where an array, or one slot of it, starts in the block and how many bytes it has."""
        if slot is None:
            return self._starts[name], self._sizes[name]
        slots = range(self._kinds[name][1][0])
        size = self._sizes[name] // len(slots)
        return self._starts[name] + slots[slot] * size, size

    def parse(self, data: Array, name: str, slot: int | None = None) -> Array:
        """A copy of the array, or of the slot of it, whose bytes are given."""
        dtype, shape = self._kinds[name]
        return np.array(data.view(dtype).reshape(shape if slot is None else shape[1:]))


class Inputs:
    """The inputs at fixed shapes: a block on the device, its image on the host, and a ring of pinned memory between.

    A copy runs when the stream comes to it, so what it reads must stay: every copy has a place of its own in the ring,
    and when there is no more, the host waits for the stream. Inputs that the device rewrites lie behind the others,
    where no copy of these reaches them.
    """

    def __init__(self, cuda: Cuda, stream: Handle, layout: Layout) -> None:
        self._cuda, self._stream, self._layout = cuda, stream, layout
        self._image = np.zeros(layout.size, np.uint8)
        self._arrays = layout.views(self._image)
        self._next = 0  # free place in the ring
        with ExitStack() as undo:
            self._block = cuda.allocate(layout.size)
            undo.callback(cuda.free, self._block)
            self._ring = cuda.pin(ROUNDS * layout.size)
            undo.pop_all()

    def address(self, name: str, slot: int | None = None) -> tuple[int, int]:
        """Where an input, or one slot of it, lies on the device, and its bytes."""
        start, size = self._layout.span(name, slot)
        return self._block + start, size

    def send(self, feeds: Mapping[str, Array]) -> None:
        """Enqueue one copy with the new values of some inputs; nothing when there are none."""
        if not feeds:
            return
        for name, array in feeds.items():
            check_like(self._arrays[name], name, array)
            self._arrays[name][...] = array
        spans = [self._layout.span(name) for name in feeds]
        start, end = min(start for start, _ in spans), max(start + size for start, size in spans)
        self.upload(start, end - start)

    def write(self, name: str, slot: int, array: Array) -> None:
        """Enqueue one copy with the new value of one slot of an input."""
        check_like(self._arrays[name][slot], name, array)
        self._arrays[name][slot] = array
        self.upload(*self._layout.span(name, slot))

    def upload(self, start: int, size: int) -> None:
        """Enqueue a copy of a part of the image, by way of the ring."""
        if self._next + size > len(self._ring):
            self.settle()
        place, self._next = self._next, self._next + size
        self._ring[place : place + size] = self._image[start : start + size]
        self._cuda.copy(self._block + start, self._ring.ctypes.data + place, size, self._stream)

    def settle(self) -> None:
        """Wait for the stream: then the whole ring is free again."""
        self._cuda.wait(self._stream)
        self._next = 0

    def close(self) -> None:
        """Give all memory back. The stream must be idle."""
        self._cuda.unpin(self._ring)
        self._cuda.free(self._block)


@dataclass(frozen=True)
class Task:
    """What an execution is made for: a signature, the sizes of its axes, all shapes, and outputs that become inputs."""

    artefact: Artefact
    sizes: Mapping[str, int]
    shapes: Mapping[str, Shape]
    feedback: Mapping[str, str]

    @property
    def key(self) -> Hashable:
        """Equal for tasks of one engine that an execution can do alike."""
        return tuple(self.shapes.items()), tuple(self.feedback.items())


class Context(Protocol):
    """A library's own handle on a network, for one task in one stream.

    `in_place`: an output may lie where the input lies that it becomes; `warm_ups`: runs until it allocates no more.
    """

    in_place: bool
    warm_ups: int

    def bind(self, addresses: Mapping[str, int], allocate: Callable[[int], int]) -> None:
        """Where inputs and outputs lie; `allocate` gives the scratch memory that a run needs."""

    def enqueue(self) -> None:
        """Put one run into the stream."""

    def warmed_up(self) -> bool:
        """Keep what was compiled; whether the library lets a run be captured now."""


# One step. What the numbers say is enqueued in one stream, in this order; the host waits for `landing`, and when the
# ring is full.
#
#   host                                      device
#   feeds --> image --> ring                  inputs, one block: [ small ... large | state ]
#                        |                            ^              |              ^
#                        '-- 1. upload: one copy -----'              |              | 3. feedback: a copy on the
#                            of what changed, or of                  v              |    device, unless `in_place`
#                            one slot (`write`)       2. the engine, scratch --> results: [ next_state ]
#
#   landing <-- 4. download: all results (`outputs`), or one input or slot (`read`)
#
# 2 and 3 are captured as one graph, so that a step is one copy and one launch.
class Execution:
    """Buffers and stream around a context, which `make` makes for the stream."""

    def __init__(self, cuda: Cuda, make: Callable[[Handle], Context], task: Task) -> None:
        self._cuda, self._task = cuda, task
        self._graph: Handle | None = None
        self._layout = Layout(task.artefact.inputs, task.shapes, last=task.feedback.values())
        self._outputs = Layout(task.artefact.outputs, task.shapes)
        with ExitStack() as undo:
            self._stream = cuda.stream()
            undo.callback(cuda.close_stream, self._stream)
            self._context = make(self._stream)
            undo.callback(delattr, self, "_context")
            self._inputs = Inputs(cuda, self._stream, self._layout)
            undo.callback(self._inputs.close)
            self._results = cuda.allocate(self._outputs.size)
            undo.callback(cuda.free, self._results)
            self._landing = cuda.pin(self._outputs.size)  # an input that feedback rewrites has the size of its output
            undo.callback(cuda.unpin, self._landing)
            self._bind(undo)
            self._resources = undo.pop_all()

    def _bind(self, undo: ExitStack) -> None:
        ports, feedback = self._task.artefact, self._task.feedback if self._context.in_place else {}
        addresses = {port.name: self._inputs.address(port.name)[0] for port in ports.inputs}
        for port in ports.outputs:
            own = self._results + self._outputs.span(port.name)[0]
            addresses[port.name] = addresses[feedback[port.name]] if port.name in feedback else own

        def allocate(size: int) -> int:
            address = self._cuda.allocate(size)
            undo.callback(self._cuda.free, address)
            return address

        self._context.bind(addresses, allocate)

    def warm_up(self, capture: bool) -> None:
        """Run on zeros, which every engine takes: kernels are compiled, and the library's own memory is there.

        Then, if asked, capture a run as a graph to replay. Where that cannot be, runs go on without: slower, with equal
        results.
        """
        self._inputs.upload(0, self._layout.size)
        for _ in range(self._context.warm_ups):
            self._enqueue()
        self._inputs.settle()
        if self._context.warmed_up() and capture:
            self._graph = self._cuda.capture(self._stream, self._enqueue)
        if self._graph is not None:
            self._resources.callback(self._cuda.close_graph, self._graph)

    def load(self, feeds: Mapping[str, Array]) -> None:
        """Enqueue a copy of inputs."""
        self._inputs.send(feeds)

    def write(self, name: str, slot: int, array: Array) -> None:
        """Enqueue a copy of one slot of one input."""
        self._cuda.check()
        self._inputs.write(name, slot, array)

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
        self._cuda.copy(self._landing.ctypes.data, self._results, self._outputs.size, self._stream)
        self._inputs.settle()
        return {name: np.array(array) for name, array in self._outputs.views(self._landing).items()}

    def read(self, name: str, slot: int | None = None) -> Array:
        """An input as feedback has left it, or one slot of it, on the host; waits for the device."""
        self._cuda.check()
        address, size = self._inputs.address(name, slot)
        self._cuda.copy(self._landing.ctypes.data, address, size, self._stream)
        self._inputs.settle()
        return self._layout.parse(self._landing[:size], name, slot)

    def close(self) -> None:
        """Wait for what was enqueued and give everything back, the graph first and the context after its memory."""
        with suppress(ClipskipError):
            self._cuda.wait(self._stream)
        self._resources.close()

    def _enqueue(self) -> None:
        self._context.enqueue()
        for output, source in self._task.feedback.items():
            if not self._context.in_place:
                start, size = self._outputs.span(output)
                self._cuda.copy(self._inputs.address(source)[0], self._results + start, size, self._stream)
