"""TensorRT and TensorRT-RTX: opens a built engine that fits this machine, and lends execution contexts to callers.

The package is an argument, so both can be used in one process, and a double in tests. Never sets
`engine_host_code_allowed`: an engine file must not bring code of its own. Knows nothing of how engines are built.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from clipskip.engines import files
from clipskip.engines.gpu import cuda_runtime
from clipskip.engines.manifest import Artefact
from clipskip.engines.store import build_command
from clipskip.engines.tensorrt_child import PACKAGES, default_capabilities, load_package
from clipskip.errors import BackendUnavailable, ClipskipError, DeviceOutOfMemory, EngineIncompatible

from .cuda import ALIGNMENT, Cuda, Handle
from .device import Device, DeviceEngine, Settings
from .execution import Task
from .signature import check_ports

SAID = 8  # of TensorRT's last errors and warnings in a message


class TensorRT:
    """`trt` is the package for `target`: tensorrt_rtx for "tensorrt-rtx", tensorrt for "tensorrt"."""

    precision = "fp16"
    variants: tuple[str, ...] = ("",)
    batch_pixels = 2**62  # what an engine takes at once is in its profile
    compiles_per_shape = True
    proof: str | None = None

    def __init__(self, trt: Any, cuda: Cuda, target: str, settings: Settings | None = None) -> None:
        self.name = self.target = target
        self.cuda = cuda
        self.settings = settings or Settings()
        self.device = Device(cuda, self.settings)
        self.loops = self.settings.contexts
        self.trt = trt
        self._said: deque[str] = deque(maxlen=SAID)
        self._logger = _logger(trt, self._said)
        cuda.check()
        self._runtime = trt.Runtime(self._logger)

    def open(self, artefact: Artefact, path: Path) -> DeviceEngine:
        """Open the engine. EngineIncompatible for another version, GPU or signature; DeviceOutOfMemory."""
        self.cuda.check()
        command = build_command(path.parent.parent, *artefact.identity[1:])
        self._check_fit(artefact, command)
        plan = path.read_bytes()
        if len(plan) > self.cuda.free_memory() and not (self.device.relieve() and len(plan) <= self.cuda.free_memory()):
            raise DeviceOutOfMemory(f"{artefact.role} needs {len(plan) / 1e9:.1f} GB of GPU memory, more than is free")
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            self.cuda.probe()
            raise EngineIncompatible(f"TensorRT cannot load {path.name}: {self.complaints()}", path=path, hint=command)
        own: dict[Any, dict[str, tuple[str, int]]] = {mode: {} for mode in self.trt.TensorIOMode.__members__.values()}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            dtype = np.dtype(self.trt.nptype(engine.get_tensor_dtype(name))).name
            own[engine.get_tensor_mode(name)][name] = dtype, len(engine.get_tensor_shape(name))
        modes = self.trt.TensorIOMode
        check_ports(artefact, path, engine.name, own[modes.INPUT], own[modes.OUTPUT])
        role = str(artefact.role)
        contexts = Contexts(self, engine, role)
        if self.target == "tensorrt-rtx":
            folder, gpu = files.own_folder(), self.cuda.gpu.compute_capability
            cache = folder and folder / f"{artefact.files[0].sha256[:32]}-{gpu}.{self.target}"
            contexts = RtxContexts(self, engine, role, cache)
        return DeviceEngine(self.device, artefact, contexts.make, artefact.files[0].size, command)

    def describe(self) -> dict[str, str]:
        """Library versions and device."""
        gpu = self.cuda.gpu
        return {"backend": self.name, PACKAGES[self.name]: self.trt.__version__, "gpu": gpu.name, "cuda": gpu.cuda}

    def complaints(self) -> str:
        """The last that TensorRT said."""
        return "; ".join(self._said) or "it does not say why"

    def _check_fit(self, artefact: Artefact, command: str) -> None:
        """Package version, architecture and model of GPU must be those it was built for; of the model, a warning."""
        role, gpu, facts = str(artefact.role), self.cuda.gpu, artefact.provenance
        built, package = facts.get("package", "an unknown package"), f"{PACKAGES[self.name]} {self.trt.__version__}"
        if built != package:
            message = f"{role} was built with {built}, installed is {package}"
            raise EngineIncompatible(message, field=role, hint=f"build it again: {command}")
        capabilities, own = facts.get("compute capability", "default"), gpu.compute_capability
        if capabilities == "default":
            capabilities = ", ".join(default_capabilities(self.trt)) if self.target == "tensorrt-rtx" else ""
        if own not in capabilities.split(", "):
            message = f"{role} was built for compute capability {capabilities}; {gpu.name} has {own}"
            other = f"{command} --compute-capability {own}, or, where that is not offered, --target tensorrt"
            raise EngineIncompatible(message, field=role, hint=other)
        device = facts.get("device", "any")
        if device not in ("any", gpu.identity):
            message = f"{role} was tuned on {device}; this is {gpu.identity}: it may be slow or fail"
            if self.settings.strict_device:
                raise EngineIncompatible(message, field=role, hint=f"build it here: {command}")
            warnings.warn(message, RuntimeWarning, stacklevel=3)


def tensorrt_backend(target: str, settings: Settings | None = None, device: int = 0) -> TensorRT:
    """The backend for "tensorrt-rtx" or "tensorrt" on one of this machine's GPUs.

    BackendUnavailable says what is missing.
    """
    cuda = Cuda(cuda_runtime(), device)
    return TensorRT(load_package(target), cuda, target, settings)


def _logger(trt: Any, said: deque[str]) -> Any:
    """A logger of `trt` that keeps errors and warnings."""
    kept = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR, trt.ILogger.Severity.WARNING)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in kept:
                said.append(message)

    return Logger()


class TensorRTContext:
    """An IExecutionContext (`inner`). TensorRT answers False to what it refuses, and puts the reason into its log."""

    in_place, warm_ups = False, 1  # an engine may read an input after it has written an output

    def __init__(self, contexts: Contexts, inner: Any, task: Task, stream: int) -> None:
        self._inner, self._contexts, self._task, self._stream = inner, contexts, task, stream  # the engine goes last

    def bind(self, addresses: Mapping[str, int], allocate: Callable[[int], int]) -> None:
        for port in self._task.artefact.inputs:
            self._expect(
                self._inner.set_input_shape(port.name, self._task.shapes[port.name]), f"a shape of {port.name}"
            )
        for name, address in addresses.items():
            self._expect(self._inner.set_tensor_address(name, address), name)
        size = max(int(self._inner.update_device_memory_size_for_shapes()), ALIGNMENT)
        self._inner.set_device_memory(allocate(size), size)

    def enqueue(self) -> None:
        self._expect(self._inner.execute_async_v3(self._stream), "to run")

    def warmed_up(self) -> bool:
        return self._contexts.warmed_up(self._inner, self._stream)

    def _expect(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise self._contexts.refused(BackendUnavailable, f"refused {what}")


class Contexts:
    """How the contexts of one engine are made: here TensorRT and TensorRT-RTX differ, and nowhere else.

    Their scratch memory is ours, sized for the shapes in use, so that no run allocates. For TensorRT everything was
    compiled when the engine was built, and whether a run can be captured only the capture itself will tell.
    """

    def __init__(self, backend: TensorRT, engine: Any, role: str) -> None:
        self._backend, self._role, self._making = backend, role, threading.Lock()
        self._how, self._engine = backend.trt.ExecutionContextAllocationStrategy.USER_MANAGED, engine

    def make(self, task: Task, stream: Handle) -> TensorRTContext:
        with self._making:
            inner = self._engine.create_execution_context(self._how)
        if inner is None:
            raise self.refused(DeviceOutOfMemory, "made no context")
        return TensorRTContext(self, inner, task, int(stream))

    def refused(self, kind: type[ClipskipError], what: str) -> ClipskipError:
        """The error for what TensorRT did not do; when the device is lost, that is the reason."""
        self._backend.cuda.probe()
        return kind(f"TensorRT {what} ({self._role}): {self._backend.complaints()}", field=self._role)

    def warmed_up(self, context: Any, stream: int) -> bool:
        """Some context has run at new shapes; whether TensorRT lets a run of it be captured in this stream."""
        return True


class RtxContexts(Contexts):
    """TensorRT-RTX compiles kernels when it first runs at a shape; a file `cache` keeps them for the next process.

    Kernels are specialised at once (EAGER), not in the background: a captured graph would keep the slow ones, and a
    picture would depend on when they were swapped. RTX's own graph capture stays off, for ours includes the copy that
    makes a step's output the next step's input.
    """

    def __init__(self, backend: TensorRT, engine: Any, role: str, cache: Path | None) -> None:
        trt = backend.trt
        self._backend, self._role, self._making = backend, role, threading.Lock()
        self._path, self._saving = cache, threading.Lock()
        self._how = engine.create_runtime_config()
        self._how.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._how.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        self._how.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._cache, self._saved = self._how.create_runtime_cache(), b""
        with suppress(OSError):
            self._saved = cache.read_bytes() if cache else b""
            if cache and self._saved and not self._cache.deserialize(self._saved):  # damaged, or another driver's
                self._saved = b""
                cache.unlink()
        self._how.set_runtime_cache(self._cache)
        self._engine = engine  # last, for attributes die in the order in which they came, and an engine goes last

    def warmed_up(self, context: Any, stream: int) -> bool:
        self._save()
        return bool(context.is_stream_capturable(stream))

    def _save(self) -> None:
        """Keep what was compiled, in one step; where nothing can be written that goes without."""
        with self._saving:
            data = bytes(self._cache.serialize())
            if self._path is None or data == self._saved:
                return
            self._saved = data
            draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.{threading.get_ident()}")
            with suppress(OSError):
                try:
                    draft.write_bytes(data)
                    draft.replace(self._path)  # which Windows refuses while another process reads it
                finally:
                    draft.unlink(missing_ok=True)
