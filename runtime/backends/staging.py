"""Inputs of a loop on their way to the device: all in one block, changed ones in one copy, no waiting for the last.

Knows nothing of engines or of what the arrays mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from math import prod

import numpy as np

from clipskip.engines.manifest import Port
from clipskip.engines.shapes import Shape

from . import Array
from .cuda import ALIGNMENT, Cuda, Handle

ROUNDS = 4  # the ring holds this many copies of the whole block: the usual changes of some dozens of steps


def aligned(size: int) -> int:
    """The next multiple of the alignment that TensorRT wants."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def offsets(
    ports: Sequence[Port], shapes: Mapping[str, Shape], last: Collection[str] = ()
) -> tuple[dict[str, int], int]:
    """Where each array lies in one block, and the size of the block.

    The smallest come first, for they are the ones that change with every step; of equal ones the last of the signature.
    Those in `last` come behind all others.
    """
    sizes = {port.name: nbytes(port, shapes[port.name]) for port in reversed(ports)}
    at, total = {}, 0
    for name in sorted(sizes, key=lambda name: (name in last, sizes[name])):
        at[name], total = total, total + aligned(sizes[name])
    return at, total


def nbytes(port: Port, shape: Shape) -> int:
    """The bytes of an array."""
    return prod(shape) * np.dtype(port.dtype).itemsize


def views(block: Array, ports: Sequence[Port], shapes: Mapping[str, Shape], at: Mapping[str, int]) -> dict[str, Array]:
    """The arrays that lie in a block of bytes."""
    return {
        port.name: block[at[port.name] :][: nbytes(port, shapes[port.name])].view(port.dtype).reshape(shapes[port.name])
        for port in ports
    }


class Inputs:
    """The inputs at fixed shapes: a block on the device, its image on the host, and a ring of pinned memory between.

    A copy runs when the stream comes to it, so what it reads must stay: every copy has a place of its own in the ring,
    and a place is used again only after the stream has passed the mark behind its copy. Inputs that the device rewrites
    (`device_owned`) lie behind the others, where no copy of these reaches them.
    """

    def __init__(
        self,
        cuda: Cuda,
        stream: Handle,
        ports: Sequence[Port],
        shapes: Mapping[str, Shape],
        device_owned: Collection[str],
    ) -> None:
        self._cuda, self._stream = cuda, stream
        self._at, self.size = offsets(ports, shapes, last=device_owned)
        self._image = np.zeros(self.size, np.uint8)
        self._arrays = views(self._image, ports, shapes, self._at)
        self._sent: deque[tuple[int, int, Handle]] = deque()  # start and end in the ring, and the mark behind the copy
        self._marks: list[Handle] = []
        self._next = 0
        self._block = cuda.allocate(self.size)
        try:
            self._ring = cuda.pin(ROUNDS * self.size)
        except BaseException:
            cuda.free(self._block)
            raise

    def address(self, name: str) -> int:
        """Where an input lies on the device."""
        return self._block + self._at[name]

    def clear(self) -> None:
        """Enqueue zeros for all inputs, which are valid values for every engine. Before anything was sent."""
        self._cuda.clear(self._block, self.size, self._stream)

    def send(self, feeds: Mapping[str, Array]) -> None:
        """Enqueue one copy with the new values of some inputs; nothing when there are none."""
        if not feeds:
            return
        for name, array in feeds.items():
            if (array.shape, array.dtype) != (self._arrays[name].shape, self._arrays[name].dtype):
                raise ValueError(f"{name}: {array.dtype}{list(array.shape)} in a loop for {self._arrays[name].shape}")
            self._arrays[name][...] = array
        start = min(self._at[name] for name in feeds)
        end = max(self._at[name] + self._arrays[name].nbytes for name in feeds)
        place = self._reserve(end - start)
        self._ring.array[place : place + end - start] = self._image[start:end]
        self._cuda.upload(self._block + start, self._ring.address + place, end - start, self._stream)
        mark = self._marks.pop() if self._marks else self._cuda.event()
        self._sent.append((place, place + end - start, mark))
        self._cuda.mark(mark, self._stream)

    def arrived(self) -> None:
        """The stream has been waited for: all places are free again."""
        self._marks += [mark for _, _, mark in self._sent]
        self._sent.clear()
        self._next = 0

    def _reserve(self, size: int) -> int:
        if self._next + size > ROUNDS * self.size:
            self._next = 0
        place, self._next = self._next, self._next + size
        while any(start < place + size and place < end for start, end, _ in self._sent):
            mark = self._sent.popleft()[2]
            self._marks.append(mark)
            self._cuda.wait_for(mark)
        return place

    def close(self) -> None:
        """Give all memory back. The stream must be idle."""
        self.arrived()
        for mark in self._marks:
            self._cuda.close_event(mark)
        self._marks.clear()
        self._cuda.unpin(self._ring)
        self._cuda.free(self._block)
