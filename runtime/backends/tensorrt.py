"""TensorRT and TensorRT-RTX: opens a built engine that fits this machine, and lends execution contexts to callers.

The package is an argument, so both can be used in one process, and a double in tests. Never sets
`engine_host_code_allowed`: an engine file must not bring code of its own. Knows nothing of how engines are built.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from clipskip.engines import files
from clipskip.engines.gpu import cuda_runtime
from clipskip.engines.manifest import Artefact
from clipskip.engines.store import build_command
from clipskip.engines.tensorrt_child import PACKAGES, default_capabilities, load_package
from clipskip.errors import DeviceOutOfMemory, EngineIncompatible

from . import Array
from .cuda import Cuda
from .execution import Execution, Task
from .pool import LentLoop, Pool
from .signature import bind, check_ports, shapes

SAID = 8  # of TensorRT's last errors and warnings in a message


@dataclass(frozen=True)
class Settings:
    """`contexts`: how many threads one engine serves at once, each with device memory of its own; `timeout`: seconds
    that a thread waits for one; `graphs`: replay a captured CUDA graph in loops; `strict_device`: refuse an engine that
    was tuned on another model of GPU, where a warning is the default.
    """

    contexts: int = 4
    timeout: float = 60.0
    graphs: bool = True
    strict_device: bool = False


class TensorRT:
    """`trt` is the package for `target`: tensorrt_rtx for "tensorrt-rtx", tensorrt for "tensorrt"."""

    precision = "fp16"
    variants: tuple[str, ...] = ("",)
    batch_pixels = 2**62  # what an engine takes at once is in its profile
    compiles_per_shape = True

    def __init__(self, trt: Any, cuda: Cuda, target: str, settings: Settings | None = None) -> None:
        self.name = self.target = target
        self.cuda = cuda
        self.settings = settings or Settings()
        self.loops = self.settings.contexts
        self._trt = trt
        self._said: deque[str] = deque(maxlen=SAID)
        self._logger = _logger(trt, self._said)
        cuda.check()
        self._runtime = trt.Runtime(self._logger)
        self._pools: WeakSet[Pool[Execution]] = WeakSet()
        self._lock = threading.Lock()

    def open(self, artefact: Artefact, path: Path) -> TensorRTEngine:
        """Open the engine. EngineIncompatible for another version, GPU or signature; DeviceOutOfMemory."""
        self.cuda.check()
        command = build_command(path.parent.parent, artefact.target, artefact.precision)
        self._check_fit(artefact, command)
        plan = path.read_bytes()
        if len(plan) > self.cuda.free_memory() and not (self.relieve() and len(plan) <= self.cuda.free_memory()):
            raise DeviceOutOfMemory(f"{artefact.role} needs {len(plan) / 1e9:.1f} GB of GPU memory, more than is free")
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            self.cuda.probe()
            raise EngineIncompatible(f"TensorRT cannot load {path.name}: {self.complaints()}", path=path, hint=command)
        own: dict[Any, dict[str, tuple[str, int]]] = {mode: {} for mode in self._trt.TensorIOMode.__members__.values()}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            dtype = np.dtype(self._trt.nptype(engine.get_tensor_dtype(name))).name
            own[engine.get_tensor_mode(name)][name] = dtype, len(engine.get_tensor_shape(name))
        modes = self._trt.TensorIOMode
        check_ports(artefact, path, engine.name, own[modes.INPUT], own[modes.OUTPUT])
        if self.target == "tensorrt":
            return TensorRTEngine(self, artefact, Contexts(self._trt, engine), command)
        folder, gpu = files.own_folder(), self.cuda.gpu.compute_capability
        cache = folder and folder / f"{artefact.files[0].sha256[:32]}-{gpu}.{self.target}"
        return TensorRTEngine(self, artefact, RtxContexts(self._trt, engine, cache), command)

    def describe(self) -> dict[str, str]:
        """Library versions and device."""
        gpu = self.cuda.gpu
        return {"backend": self.name, PACKAGES[self.name]: self._trt.__version__, "gpu": gpu.name, "cuda": gpu.cuda}

    def pool(self) -> Pool[Execution]:
        """For the executions of one engine. Idle ones of any engine make room where one lacks memory."""
        pool: Pool[Execution] = Pool(self.settings.contexts, self.settings.timeout, self.relieve)
        with self._lock:
            self._pools.add(pool)
        return pool

    def relieve(self) -> bool:
        """Give up the device memory of all idle executions; whether there were any."""
        with self._lock:
            pools = list(self._pools)
        given_up = [pool.give_up_idle() for pool in pools]
        return any(given_up)

    def complaints(self) -> str:
        """The last that TensorRT said."""
        return "; ".join(self._said) or "it does not say why"

    def _check_fit(self, artefact: Artefact, command: str) -> None:
        """Package version, architecture and model of GPU must be those it was built for; of the model, a warning."""
        role, gpu, facts = str(artefact.role), self.cuda.gpu, artefact.provenance
        built, package = facts.get("package", "an unknown package"), f"{PACKAGES[self.name]} {self._trt.__version__}"
        if built != package:
            message = f"{role} was built with {built}, installed is {package}"
            raise EngineIncompatible(message, field=role, hint=f"build it again: {command}")
        capabilities, own = facts.get("compute capability", "default"), gpu.compute_capability
        if capabilities == "default":
            capabilities = ", ".join(default_capabilities(self._trt)) if self.target == "tensorrt-rtx" else ""
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


class Contexts:
    """How the contexts of one engine are made: here TensorRT and TensorRT-RTX differ, and nowhere else.

    Their scratch memory is ours, sized for the shapes in use, so that no run allocates. For TensorRT everything was
    compiled when the engine was built, and whether a run can be captured only the capture itself will tell.
    """

    def __init__(self, trt: Any, engine: Any) -> None:
        self._how, self._engine = trt.ExecutionContextAllocationStrategy.USER_MANAGED, engine

    def make(self) -> Any:
        """A new context, or None when TensorRT refuses."""
        return self._engine.create_execution_context(self._how)

    def capturable(self, context: Any, stream: int) -> bool:
        """Whether TensorRT lets a run of the context be captured in this stream."""
        return True

    def warmed_up(self) -> None:
        """Some context has run at new shapes."""


class RtxContexts(Contexts):
    """TensorRT-RTX compiles kernels when it first runs at a shape; a file `cache` keeps them for the next process.

    Kernels are specialised at once (EAGER), not in the background: a captured graph would keep the slow ones, and a
    picture would depend on when they were swapped. RTX's own graph capture stays off, for ours includes the copy that
    makes a step's output the next step's input.
    """

    def __init__(self, trt: Any, engine: Any, cache: Path | None) -> None:
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

    def capturable(self, context: Any, stream: int) -> bool:
        return bool(context.is_stream_capturable(stream))

    def warmed_up(self) -> None:
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


class TensorRTEngine:
    """One opened engine. Threads share it: each run or loop borrows an execution, a context with its buffers."""

    def __init__(self, backend: TensorRT, artefact: Artefact, contexts: Contexts, command: str) -> None:
        self.artefact = artefact
        self.nbytes = artefact.files[0].size
        self._backend, self._contexts, self._command = backend, contexts, command
        self._making = threading.Lock()
        self._pool = backend.pool()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name. RequestError, before any GPU work, for shapes that the engine was not built for."""
        task = self._task(feeds, {})
        with self._pool.use(task.key, lambda: self._make(task)) as execution:
            execution.run(feeds)
            return execution.outputs()

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> LentLoop[Execution]:
        """Borrow an execution until the loop is closed. RequestError as for `run`."""
        task = self._task(feeds, feedback)
        return LentLoop(self, self._pool, task.key, lambda: self._make(task), feeds)

    def close(self) -> None:
        """Free what is idle now, and what is in use when it comes back."""
        self._pool.close()

    def _task(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> Task:
        self._backend.cuda.check()
        sizes = bind(self.artefact, feeds, self._command)
        return Task(self.artefact, shapes(self.artefact, sizes), feedback)

    def _make(self, task: Task) -> Execution:
        backend = self._backend
        with self._making:
            context = self._contexts.make()
        if context is None:
            backend.cuda.probe()
            raise DeviceOutOfMemory(f"TensorRT made no context for {self.artefact.role}: {backend.complaints()}")
        execution = Execution(backend.cuda, context, task, backend.complaints)
        try:
            execution.warm_up()
            if task.feedback and backend.settings.graphs:
                execution.capture(self._contexts.capturable)
            self._contexts.warmed_up()
        except BaseException:
            execution.close()
            raise
        return execution
