"""A double of cuda.bindings.runtime over a simulated device: the calls that cuda.py makes, their results and failures.

A test holds every attribute against the real module. Knows nothing of TensorRT.
"""
# ruff: noqa: N815  (the names are CUDA's)

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from clipskip.backends import Array

from .device import DEVICE_BASE, GIGABYTE, POISON, Event, SimulatedDevice, Stream, Work


class SimulatedCuda(SimulatedDevice):
    """Stands for the module cuda.bindings.runtime."""

    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaError_t = IntEnum(
        "cudaError_t",
        {
            "cudaSuccess": 0, "cudaErrorInvalidValue": 1, "cudaErrorMemoryAllocation": 2,
            "cudaErrorInsufficientDriver": 35, "cudaErrorNoDevice": 100, "cudaErrorECCUncorrectable": 214,
            "cudaErrorNvlinkUncorrectable": 220, "cudaErrorContained": 226, "cudaErrorNotReady": 600,
            "cudaErrorIllegalAddress": 700, "cudaErrorLaunchTimeout": 702, "cudaErrorContextIsDestroyed": 709,
            "cudaErrorAssert": 710, "cudaErrorHardwareStackError": 714, "cudaErrorIllegalInstruction": 715,
            "cudaErrorMisalignedAddress": 716, "cudaErrorInvalidAddressSpace": 717, "cudaErrorInvalidPc": 718,
            "cudaErrorLaunchFailure": 719, "cudaErrorTensorMemoryLeak": 721,
            "cudaErrorStreamCaptureInvalidated": 901, "cudaErrorExternalDevice": 911, "cudaErrorUnknown": 999,
        },
    )  # fmt: skip
    cudaMemcpyKind = IntEnum(
        "cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2, "cudaMemcpyDeviceToDevice": 3}
    )
    cudaStreamCaptureMode = IntEnum("cudaStreamCaptureMode", {"cudaStreamCaptureModeThreadLocal": 1})

    def _result(self, *values: Any) -> tuple[Any, ...]:
        if self.failed:
            return self.cudaError_t.cudaErrorIllegalAddress, *(None for _ in values)
        return self.cudaError_t.cudaSuccess, *values

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self._result(1)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return self._result(13050)

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return self._result(13050)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        major, minor = self.capability
        uuid = SimpleNamespace(bytes=b"simulated device")
        name = b"simulated GPU"
        return self._result(SimpleNamespace(name=name, major=major, minor=minor, totalGlobalMem=self.memory, uuid=uuid))

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return self._result(self.memory - sum(block.size for block in self.blocks.values()), self.memory)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return self._result()

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("malloc", size, self.blocks)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocate("pin", size, self.pinned)

    def _allocate(self, name: str, size: int, blocks: dict[int, Array]) -> tuple[Any, ...]:
        with self.lock:
            self.note(name, size)
            free = self.memory - sum(block.size for block in self.blocks.values())
            if self.faults.due("allocation") or (name == "malloc" and size > free):
                return self.cudaError_t.cudaErrorMemoryAllocation, None
            block = np.full(size, POISON, np.uint8)
            host = block.ctypes.data
            address = DEVICE_BASE + next(self.numbers) * 16 * GIGABYTE if blocks is self.blocks else host
            blocks[address] = block
            return self._result(address)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        self.note("free")
        del self.blocks[address]
        return self._result()

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        self.note("unpin")
        del self.pinned[address]
        return self._result()

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: Stream) -> tuple[Any, ...]:
        direction = self.cudaMemcpyKind(kind).name.removeprefix("cudaMemcpy")
        self.note("copy" if stream.graph is None else "captured copy", size, direction)

        def copy() -> None:
            self.view(target, size)[:] = self.view(source, size)

        self.enqueue(stream, copy)
        return self._result()

    def cudaMemsetAsync(self, target: int, value: int, size: int, stream: Stream) -> tuple[Any, ...]:
        self.enqueue(stream, lambda: self.view(target, size).fill(value))
        return self._result()

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        stream = Stream(next(self.numbers))
        self.streams[stream.handle] = stream
        return self._result(stream)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Any, ...]:
        self.note("synchronise")
        stream.run(lambda: False)
        return self._result()

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Any, ...]:
        del self.streams[stream.handle]
        return self._result()

    def cudaStreamBeginCapture(self, stream: Stream, mode: Any) -> tuple[Any, ...]:
        self.note("capture")
        stream.graph = []
        return self._result()

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Any, ...]:
        graph, stream.graph = stream.graph, None
        if self.faults.capture:
            return self.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return self._result(graph)

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> tuple[Any, ...]:
        return self._result(tuple(graph))

    def cudaGraphDestroy(self, graph: list[Work]) -> tuple[Any, ...]:
        return self._result()

    def cudaGraphExecDestroy(self, graph: tuple[Work, ...]) -> tuple[Any, ...]:
        return self._result()

    def cudaGraphLaunch(self, graph: tuple[Work, ...], stream: Stream) -> tuple[Any, ...]:
        self.note("launch")
        stream.queue.extend(graph)
        return self._result()

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        self.note("event")
        return self._result(Event())

    def cudaEventDestroy(self, event: Event) -> tuple[Any, ...]:
        return self._result()

    def cudaEventRecord(self, event: Event, stream: Stream) -> tuple[Any, ...]:
        event.stream = stream
        event.open += 1

        def passed() -> None:
            event.open -= 1

        stream.put(passed)
        return self._result()

    def cudaEventQuery(self, event: Event) -> tuple[Any, ...]:
        return (self.cudaError_t.cudaErrorNotReady,) if event.open else self._result()

    def cudaEventSynchronize(self, event: Event) -> tuple[Any, ...]:
        self.note("wait for event")
        assert event.stream is not None
        event.stream.run(lambda: not event.open)
        return self._result()
