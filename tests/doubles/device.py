"""Devices that are host memory: streams that do their work when somebody waits, and faults to order.

Nothing runs before that, so a copy whose source changed too early, or a result read too early, is wrong here as it
would be on a GPU. Device addresses mean nothing to the host, and those of one device nothing to another. Knows nothing
of CUDA's API.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from clipskip.backends import Array

Work = Callable[[], None]
DEVICE_BASE = 1 << 52  # no address of this process
GIGABYTE = 1 << 30
POISON = 0xC5  # what fresh memory holds


@dataclass
class Faults:
    """What shall go wrong, and when: 1 is the next time, 2 the one after; 0 is never."""

    allocation: int = 0  # out of memory
    sticky: int = 0  # a run leaves the device in a state that nothing gets it out of
    nan: int = 0  # the outputs of a run are NaN
    capture: bool = False  # no stream can be captured
    seconds: float = 0.0  # that each run takes

    def due(self, name: str) -> bool:
        """Whether this is the time; counts down."""
        left = getattr(self, name)
        setattr(self, name, max(left - 1, 0))
        return bool(left == 1)


@dataclass(frozen=True)
class Call:
    """One call, as the trace has it: its name, the bytes it concerned, and the direction of a copy."""

    name: str
    size: int = 0
    direction: str = ""


class Stream:
    """Work in the order in which it came; while it is captured, work goes into a graph instead."""

    def __init__(self, device: SimulatedDevice, handle: int) -> None:
        self.device = device
        self.handle = handle
        self.queue: deque[Work] = deque()
        self.graph: list[Work] | None = None
        self.lock = threading.RLock()

    def __int__(self) -> int:
        return self.handle

    def put(self, work: Work) -> None:
        """Enqueue work, or capture it."""
        (self.queue if self.graph is None else self.graph).append(work)

    def run(self, done: Callable[[], bool]) -> None:
        """Do the work until `done` or until there is no more."""
        with self.lock:
            while self.queue and not done():
                self.queue.popleft()()


class SimulatedDevice:
    """`trace` is every call so far; `faults` may be set at any time."""

    def __init__(self, index: int = 0, capability: tuple[int, int] = (8, 9), memory: int = 8 * GIGABYTE) -> None:
        self.index = index
        self.faults = Faults()
        self.trace: list[Call] = []
        self.memory = memory
        self.capability = capability
        self.blocks: dict[int, Array] = {}  # device memory by address
        self.pinned: dict[int, Array] = {}
        self.lock = threading.RLock()
        self.failed = False
        self._numbers = count(1)

    def free(self) -> int:
        """Bytes that are not allocated."""
        return self.memory - sum(block.size for block in self.blocks.values())

    def address(self) -> int:
        """Where the next allocation lies."""
        return DEVICE_BASE * (self.index + 1) + next(self._numbers) * 16 * GIGABYTE

    def side(self, address: int) -> str:
        """Where an address lies: on the "Device", or on the "Host"."""
        return "Device" if address >= DEVICE_BASE else "Host"

    def note(self, name: str, size: int = 0, direction: str = "") -> None:
        """Put a call into the trace."""
        self.trace.append(Call(name, size, direction))

    def view(self, address: int, size: int) -> Array:
        """The bytes at a device or pinned address, all within one allocation; KeyError otherwise."""
        with self.lock:
            for base, block in (*self.blocks.items(), *self.pinned.items()):
                if base <= address and address + size <= base + block.size:
                    return block[address - base :][:size]
        raise KeyError(f"{size} bytes at {address:#x} are not allocated")

    def enqueue(self, stream: Stream, work: Work) -> None:
        """Put work into a stream; where it touches memory that is gone, the device fails as a real one does."""

        def guarded() -> None:
            try:
                if not self.failed:
                    work()
            except KeyError:
                self.failed = True

        stream.put(guarded)

    def fail(self) -> None:
        """Leave the device in a state that nothing gets it out of."""
        self.failed = True


class SimulatedMachine:
    """Some devices, one of which is current for each thread: the first, until the thread sets another."""

    def __init__(self, devices: int, capability: tuple[int, int], memory: int) -> None:
        self.devices = [SimulatedDevice(index, capability, memory) for index in range(devices)]
        self.streams: dict[int, Stream] = {}
        self.handles = count(1)
        self._thread = threading.local()

    @property
    def current(self) -> SimulatedDevice:
        """The calling thread's device."""
        return self.devices[getattr(self._thread, "index", 0)]

    def make_current(self, index: int) -> None:
        """Set the calling thread's device."""
        self._thread.index = index

    def stream_of(self, handle: Any) -> Stream:
        """The stream with this handle."""
        return self.streams[int(handle)]
