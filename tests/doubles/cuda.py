"""A double of cuda.bindings.runtime over simulated devices: the calls that cuda.py makes, their results and failures.

A test holds every attribute against the real module. Knows nothing of TensorRT.
"""
# ruff: noqa: N815  (the names are CUDA's)

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from clipskip.backends import Array

from .device import GIGABYTE, POISON, SimulatedDevice, SimulatedMachine, Stream, Work


class SimulatedCuda(SimulatedMachine):
    """Stands for the module cuda.bindings.runtime. Work for a stream of another device than the current one fails."""

    cudaStreamNonBlocking = 1
    cudaError_t = IntEnum(
        "cudaError_t",
        {
            "cudaSuccess": 0, "cudaErrorInvalidValue": 1, "cudaErrorMemoryAllocation": 2,
            "cudaErrorInsufficientDriver": 35, "cudaErrorNoDevice": 100, "cudaErrorInvalidDevice": 101,
            "cudaErrorECCUncorrectable": 214, "cudaErrorNvlinkUncorrectable": 220, "cudaErrorContained": 226,
            "cudaErrorInvalidResourceHandle": 400, "cudaErrorNotReady": 600,
            "cudaErrorIllegalAddress": 700, "cudaErrorLaunchTimeout": 702, "cudaErrorContextIsDestroyed": 709,
            "cudaErrorAssert": 710, "cudaErrorHardwareStackError": 714, "cudaErrorIllegalInstruction": 715,
            "cudaErrorMisalignedAddress": 716, "cudaErrorInvalidAddressSpace": 717, "cudaErrorInvalidPc": 718,
            "cudaErrorLaunchFailure": 719, "cudaErrorTensorMemoryLeak": 721,
            "cudaErrorStreamCaptureInvalidated": 901, "cudaErrorExternalDevice": 911, "cudaErrorUnknown": 999,
        },
    )  # fmt: skip
    cudaMemcpyKind = IntEnum("cudaMemcpyKind", {"cudaMemcpyDefault": 4})
    cudaStreamCaptureMode = IntEnum("cudaStreamCaptureMode", {"cudaStreamCaptureModeThreadLocal": 1})

    def __init__(self, capability: tuple[int, int] = (8, 9), memory: int = 8 * GIGABYTE, devices: int = 1) -> None:
        super().__init__(devices, capability, memory)

    def _result(self, *values: Any, device: SimulatedDevice | None = None) -> tuple[Any, ...]:
        if (device or self.current).failed:
            return self.cudaError_t.cudaErrorIllegalAddress, *(None for _ in values)
        return self.cudaError_t.cudaSuccess, *values

    def _elsewhere(self, stream: Stream) -> bool:
        return stream.device is not self.current

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self._result(len(self.devices))

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return self.cudaError_t.cudaSuccess, self.current.index

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        if not 0 <= device < len(self.devices):
            return (self.cudaError_t.cudaErrorInvalidDevice,)
        self.make_current(device)
        return (self.cudaError_t.cudaSuccess,)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return self._result(13050)

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return self._result(13050)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        if not 0 <= device < len(self.devices):
            return self.cudaError_t.cudaErrorInvalidDevice, None
        major, minor = self.devices[device].capability
        memory = self.devices[device].memory
        uuid = SimpleNamespace(bytes=b"simulated device")
        name = b"simulated GPU"
        return self._result(SimpleNamespace(name=name, major=major, minor=minor, totalGlobalMem=memory, uuid=uuid))

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return self._result(self.current.free(), self.current.memory)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return self._result()

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("malloc", size, self.current.blocks)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocate("pin", size, self.current.pinned)

    def _allocate(self, name: str, size: int, blocks: dict[int, Array]) -> tuple[Any, ...]:
        device = self.current
        with device.lock:
            device.note(name, size)
            if device.faults.due("allocation") or (name == "malloc" and size > device.free()):
                return self.cudaError_t.cudaErrorMemoryAllocation, None
            block = np.full(size, POISON, np.uint8)
            address = device.address() if name == "malloc" else block.ctypes.data
            blocks[address] = block
            return self._result(address)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return self._forget("free", address, self.current.blocks)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        return self._forget("unpin", address, self.current.pinned)

    def _forget(self, name: str, address: int, blocks: dict[int, Array]) -> tuple[Any, ...]:
        with self.current.lock:
            self.current.note(name)
            del blocks[address]
            return self._result()

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: Stream) -> tuple[Any, ...]:
        device = stream.device
        direction = f"{device.side(source)}To{device.side(target)}"
        device.note("copy" if stream.graph is None else "captured copy", size, direction)

        def copy() -> None:
            device.view(target, size)[:] = device.view(source, size)

        device.enqueue(stream, copy)
        return self._result()

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        stream = Stream(self.current, next(self.handles))
        self.streams[stream.handle] = stream
        return self._result(stream)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Any, ...]:
        stream.device.note("synchronise")
        stream.run(lambda: False)
        return self._result(device=stream.device)

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Any, ...]:
        del self.streams[stream.handle]
        return self._result()

    def cudaStreamBeginCapture(self, stream: Stream, mode: Any) -> tuple[Any, ...]:
        stream.device.note("capture")
        stream.graph = []
        return self._result()

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Any, ...]:
        graph, stream.graph = stream.graph, None
        if stream.device.faults.capture:
            return self.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return self._result(graph)

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> tuple[Any, ...]:
        return self._result(tuple(graph))

    def cudaGraphDestroy(self, graph: list[Work]) -> tuple[Any, ...]:
        return self._result()

    def cudaGraphExecDestroy(self, graph: tuple[Work, ...]) -> tuple[Any, ...]:
        return self._result()

    def cudaGraphLaunch(self, graph: tuple[Work, ...], stream: Stream) -> tuple[Any, ...]:
        if self._elsewhere(stream):
            return (self.cudaError_t.cudaErrorInvalidResourceHandle,)
        stream.device.note("launch")
        stream.queue.extend(graph)
        return self._result()
