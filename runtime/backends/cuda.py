"""CUDA as this package needs it: memory, copies, streams and graphs, with every failure as one of our errors.

A thin layer on cuda.bindings.runtime, whose calls return their status as a number: cuda.core raises one exception for
everything, with the cause only in its text. Devices are counted as CUDA counts them, among the visible ones
(CUDA_VISIBLE_DEVICES). Knows nothing of engines.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any, TypeAlias

import numpy as np

from clipskip.engines import hints
from clipskip.engines.gpu import Gpu, describe
from clipskip.errors import BackendUnavailable, ClipskipError, DeviceLost, DeviceOutOfMemory

from . import Array

Handle: TypeAlias = Any  # a stream or graph of the bindings
ALIGNMENT = 256  # bytes; of every tensor that TensorRT is given

# After one of these every later call fails as well: the context is gone, and with it all that was on the device.
STICKY = (
    "cudaErrorIllegalAddress", "cudaErrorLaunchTimeout", "cudaErrorLaunchFailure", "cudaErrorAssert",
    "cudaErrorHardwareStackError", "cudaErrorIllegalInstruction", "cudaErrorMisalignedAddress",
    "cudaErrorInvalidAddressSpace", "cudaErrorInvalidPc", "cudaErrorECCUncorrectable", "cudaErrorNvlinkUncorrectable",
    "cudaErrorContained", "cudaErrorTensorMemoryLeak", "cudaErrorContextIsDestroyed", "cudaErrorExternalDevice",
    "cudaErrorUnknown",
)  # fmt: skip


class Cuda:
    """One device. `runtime` is cuda.bindings.runtime or its double. Thread-safe.

    CUDA has a current device for each thread, which any library may change: every call here is made with this one
    current, and leaves it so.
    """

    def __init__(self, runtime: Any, index: int = 0) -> None:
        self._runtime, self.index = runtime, index
        self._errors = runtime.cudaError_t
        self._sticky = {getattr(self._errors, name) for name in STICKY}
        self._process = os.getpid()
        self._lost: str | None = None
        self.gpu: Gpu = describe(runtime, index)

    def check(self) -> None:
        """Refuse work that cannot succeed, after a fork or on a lost device; make this the thread's current device."""
        if os.getpid() != self._process:
            raise BackendUnavailable(
                "this process was forked after the GPU was opened, and CUDA does not survive that",
                hint='open the pipeline after the fork, or use multiprocessing\'s "spawn"',
            )
        if self._lost:
            raise DeviceLost(f"the GPU failed earlier ({self._lost})", hint="start the process again")
        self._activate()

    def probe(self) -> None:
        """Raise what the last failed call of this thread, in whatever library, stands for."""
        self._call(self._runtime.cudaGetLastError)

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the device. DeviceOutOfMemory."""
        return int(self._call(self._runtime.cudaMalloc, size, size=size))

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._release(self._runtime.cudaFree, address)

    def pin(self, size: int) -> Array:
        """`size` bytes of page-locked host memory, which the device copies from and to while the host goes on."""
        address = int(self._call(self._runtime.cudaMallocHost, size, size=size))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def unpin(self, memory: Array) -> None:
        """Give page-locked memory back. It must not be used again."""
        self._release(self._runtime.cudaFreeHost, memory.ctypes.data)

    def free_memory(self) -> int:
        """Bytes that are free on the device now, whoever uses it."""
        return int(self._call(self._runtime.cudaMemGetInfo)[0])

    def copy(self, target: int, source: int, size: int, stream: Handle) -> None:
        """Enqueue a copy between device and pinned memory, or on the device; CUDA knows addresses apart."""
        default = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        self._call(self._runtime.cudaMemcpyAsync, target, source, size, default, stream)

    def upload(self, blocks: Mapping[int, Array]) -> None:
        """Copy arrays of bytes to where they shall lie on the device, by way of pinned memory; waits for them."""
        with ExitStack() as undo:
            staging = self.pin(max(block.size for block in blocks.values()))
            undo.callback(self.unpin, staging)
            stream = self.stream()
            undo.callback(self.close_stream, stream)
            for address, block in blocks.items():
                staging[: block.size] = block
                self.copy(address, staging.ctypes.data, block.size, stream)
                self.wait(stream)

    def stream(self) -> Handle:
        """A stream that does not wait for the default one."""
        return self._call(self._runtime.cudaStreamCreateWithFlags, self._runtime.cudaStreamNonBlocking)

    def wait(self, stream: Handle) -> None:
        """Wait until everything enqueued has run."""
        self._call(self._runtime.cudaStreamSynchronize, stream)

    def close_stream(self, stream: Handle) -> None:
        """Wait for the stream, as far as it still goes, and free it."""
        self._release(self._runtime.cudaStreamSynchronize, stream)
        self._release(self._runtime.cudaStreamDestroy, stream)

    def capture(self, stream: Handle, enqueue: Callable[[], None]) -> Handle | None:
        """What `enqueue` puts into the stream as a graph to launch, not run; None when CUDA cannot capture it.

        Other threads may allocate meanwhile.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._runtime.cudaStreamBeginCapture, stream, mode)
        refused = False
        try:
            enqueue()
        except BackendUnavailable:
            refused = True
        finally:
            status, graph = self._runtime.cudaStreamEndCapture(stream)
        if status != self._errors.cudaSuccess:
            self._runtime.cudaGetLastError()  # take it off, or the next call reports it
            return None
        try:
            return None if refused else self._call(self._runtime.cudaGraphInstantiate, graph, 0)
        finally:
            self._runtime.cudaGraphDestroy(graph)

    def launch(self, graph: Handle, stream: Handle) -> None:
        """Enqueue a captured graph."""
        self._call(self._runtime.cudaGraphLaunch, graph, stream)

    def close_graph(self, graph: Handle) -> None:
        """Free a captured graph."""
        self._release(self._runtime.cudaGraphExecDestroy, graph)

    def _activate(self) -> None:
        """Make this the thread's current device; it asks first, which is cheap and disturbs no capture."""
        status, current = self._runtime.cudaGetDevice()
        if status == self._errors.cudaSuccess and current != self.index:
            (status,) = self._runtime.cudaSetDevice(self.index)
        if status != self._errors.cudaSuccess:
            raise self._error(status)

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any, size: int = 0) -> Any:
        """What a call of the bindings returns beside its status; a bad status becomes the error it stands for."""
        self._activate()
        status, *values = function(*arguments)
        if status != self._errors.cudaSuccess:
            raise self._error(status, size)
        return values[0] if len(values) == 1 else tuple(values)

    def _release(self, function: Callable[[Handle], tuple[Any, ...]], handle: Handle) -> None:
        """Give something back; on a lost device there is nothing to give."""
        with suppress(ClipskipError):
            self._call(function, handle)

    def _error(self, status: Any, size: int = 0) -> ClipskipError:
        name = self._errors(status).name
        if status == self._errors.cudaErrorMemoryAllocation:
            self._runtime.cudaGetLastError()  # not sticky: take it off, or the next launch reports it
            amount = f" for {size / 1e6:.1f} MB" if size else ""
            return DeviceOutOfMemory(
                f"out of GPU memory{amount}", hint="smaller pictures, fewer at once, or fewer threads"
            )
        if status in self._sticky:
            self._lost = name
            return DeviceLost(f"the GPU failed ({name}); nothing on it can be trusted", hint="start the process again")
        hint = f"{hints.clipskip()} doctor shows driver and versions"
        return BackendUnavailable(f"CUDA refused a call ({name})", hint=hint)
