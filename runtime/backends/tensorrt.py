"""TensorRT and TensorRT-RTX: opens a built engine, checks that it fits this machine, and leases contexts to callers.

The package is an argument, so both can be used in one process, and a double in tests. Never sets
`engine_host_code_allowed`: an engine file must not bring code of its own. Knows nothing of how engines are built.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from clipskip.engines.gpu import cuda_runtime
from clipskip.engines.manifest import Artefact
from clipskip.engines.store import build_command
from clipskip.engines.tensorrt_child import PACKAGES, load_package
from clipskip.errors import DeviceOutOfMemory, EngineIncompatible

from . import Array
from .contexts import KINDS, Contexts
from .cuda import Cuda
from .fit import check_device, check_version, default_capabilities
from .lane import Lane, Task
from .leased import Lease, LeasedLoop
from .pool import Pool
from .signature import bind, shapes

SAID = 8  # of TensorRT's last errors and warnings in a message


@dataclass(frozen=True)
class Settings:
    """`contexts`: how many threads one engine serves at once, each with device memory of its own; `patience`: seconds
    that a thread waits for one; `graphs`: replay a captured CUDA graph in loops; `strict_device`: refuse an engine that
    was tuned on another model of GPU, where a warning is the default.
    """

    contexts: int = 4
    patience: float = 60.0
    graphs: bool = True
    strict_device: bool = False


class TensorRT:
    """`trt` is the package for `target`: tensorrt_rtx for "tensorrt-rtx", tensorrt for "tensorrt"."""

    precision = "fp16"
    batch_pixels = 2**62  # what an engine takes at once is in its profile
    few_shapes = True

    def __init__(self, trt: Any, cuda: Cuda, target: str, settings: Settings | None = None) -> None:
        self.name = self.target = target
        self.cuda = cuda
        self.settings = settings or Settings()
        self._trt = trt
        self._said: deque[str] = deque(maxlen=SAID)
        self._logger = _logger(trt, self._said)
        self._runtime = trt.Runtime(self._logger)
        self._pools: WeakSet[Pool[Lane]] = WeakSet()
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
        self._check_signature(artefact, engine, path)
        cache = path.with_name(f"{path.name}.{self.cuda.gpu.compute_capability}.cache")
        return TensorRTEngine(self, artefact, KINDS[self.target](self._trt, engine, cache), command)

    def describe(self) -> dict[str, str]:
        """Library versions and device."""
        gpu = self.cuda.gpu
        return {"backend": self.name, PACKAGES[self.name]: self._trt.__version__, "gpu": gpu.name, "cuda": gpu.cuda}

    def pool(self) -> Pool[Lane]:
        """For the lanes of one engine. Idle lanes of any engine make room where one lacks memory."""
        made: Pool[Lane] = Pool(self.settings.contexts, self.settings.patience, self.relieve)
        with self._lock:
            self._pools.add(made)
        return made

    def relieve(self) -> bool:
        """Give up the device memory of all idle lanes; whether there were any."""
        with self._lock:
            pools = list(self._pools)
        given_up = [pool.give_up_idle() for pool in pools]
        return any(given_up)

    def complaints(self) -> str:
        """The last that TensorRT said."""
        return "; ".join(self._said) or "it does not say why"

    def _check_fit(self, artefact: Artefact, command: str) -> None:
        check_version(artefact, f"{PACKAGES[self.name]} {self._trt.__version__}", command)
        supported = default_capabilities(self._trt) if self.target == "tensorrt-rtx" else []
        check_device(artefact, self.cuda.gpu, supported, self.settings.strict_device, command)

    def _check_signature(self, artefact: Artefact, engine: Any, path: Path) -> None:
        """The engine's own inputs and outputs must be the manifest's."""
        trt = self._trt
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {
            name: (engine.get_tensor_mode(name), np.dtype(trt.nptype(engine.get_tensor_dtype(name)))) for name in names
        }
        inputs = {port.name: (trt.TensorIOMode.INPUT, np.dtype(port.dtype)) for port in artefact.inputs}
        outputs = {port.name: (trt.TensorIOMode.OUTPUT, np.dtype(port.dtype)) for port in artefact.outputs}
        if found != {**inputs, **outputs}:
            raise EngineIncompatible(f"{path.name} is no {artefact.role}: it has {', '.join(names)}", path=path)


def tensorrt_backend(target: str, settings: Settings | None = None) -> TensorRT:
    """The backend for "tensorrt-rtx" or "tensorrt" on this machine's GPU. BackendUnavailable says what is missing."""
    cuda = Cuda(cuda_runtime())
    return TensorRT(load_package(target), cuda, target, settings)


def _logger(trt: Any, said: deque[str]) -> Any:
    """A logger of `trt` that keeps errors and warnings."""
    kept = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR, trt.ILogger.Severity.WARNING)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in kept:
                said.append(message)

    return Logger()


class TensorRTEngine:
    """One opened engine. Threads share it: each run or loop leases a lane, a context with its buffers."""

    def __init__(self, backend: TensorRT, artefact: Artefact, contexts: Contexts, command: str) -> None:
        self.artefact = artefact
        self.nbytes = artefact.files[0].size
        self._backend, self._contexts, self._command = backend, contexts, command
        self._making = threading.Lock()
        self._pool = backend.pool()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name. RequestError, before any GPU work, for shapes that the engine was not built for."""
        lease = self._lane(feeds, {})
        with lease.guarded() as lane:
            lane.run(feeds)
            outputs = lane.outputs()
        lease.release()
        return outputs

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> LeasedLoop[Lane]:
        """Lease a lane until the loop is closed. RequestError as for `run`."""
        lease = self._lane(feeds, feedback)
        with lease.guarded() as lane:
            lane.load(feeds)
        return LeasedLoop(lease)

    def close(self) -> None:
        """Free what is idle now, and what is in use when it comes back."""
        self._pool.close()

    def _lane(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> Lease[Lane]:
        self._backend.cuda.check()
        sizes = bind(self.artefact, feeds, self._command)
        task = Task(self.artefact, shapes(self.artefact, sizes), feedback)
        key = tuple(task.shapes.items()), tuple(feedback.items())
        return Lease(self, self._pool, key, lambda: self._make(task))

    def _make(self, task: Task) -> Lane:
        with self._making:
            context = self._contexts.make()
        backend = self._backend
        if context is None:
            backend.cuda.probe()
            raise DeviceOutOfMemory(f"TensorRT made no context for {self.artefact.role}: {backend.complaints()}")
        lane = Lane(backend.cuda, context, task, backend.complaints)
        try:
            lane.warm_up()
            if task.feedback and backend.settings.graphs:
                lane.capture(self._contexts.capturable)
            self._contexts.warmed_up()
        except BaseException:
            lane.close()
            raise
        return lane
