"""ONNX Runtime: the CPU by default, other devices by provider. The only module that names the onnxruntime package."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clipskip.engines.manifest import Artefact
from clipskip.errors import BackendUnavailable, DeviceOutOfMemory, EngineIncompatible

from . import Array

CPU = "CPUExecutionProvider"
CPU_PIXELS = 512 * 512  # attention needs 1 GB for one guided picture of this size, and batches bring no speed
GPU_PIXELS = 4 * 512 * 512
SESSION_BYTES = 16 * 2**20  # what a session of mapped weights takes for itself


class OnnxRuntime:
    """Runs exported graphs as they are. `providers` are ONNX Runtime's names, the preferred one first.

    `threads` is the number of threads of one engine (default: as many as this process may use cores).
    """

    name = "onnxruntime"
    target = "onnx"

    def __init__(self, providers: Sequence[str] = (CPU,), threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailable(
                "ONNX Runtime is not installed", hint="pip install 'clipskip[cpu]', or 'clipskip[gpu]' for CUDA"
            ) from error
        self._ort = onnxruntime
        self.providers = tuple(providers)
        self.threads = threads or len(os.sched_getaffinity(0))
        self.precision = "fp32" if self.providers[0] == CPU else "fp16"
        self.batch_pixels = CPU_PIXELS if self.device == "cpu" else GPU_PIXELS
        missing = [name for name in self.providers if name not in onnxruntime.get_available_providers()]
        if missing:
            there = ", ".join(onnxruntime.get_available_providers())
            raise BackendUnavailable(
                f"this ONNX Runtime has no {', '.join(missing)}, only {there}",
                hint="pip install 'clipskip[gpu]' in place of 'clipskip[cpu]'; the two cannot be installed together",
            )

    def open(self, artefact: Artefact, path: Path) -> OnnxRuntimeEngine:
        with self.translated(path):
            session = self._ort.InferenceSession(
                str(path), self._options(artefact.role), providers=list(self.providers)
            )
        if session.get_providers()[0] != self.providers[0]:
            raise BackendUnavailable(
                f"{self.providers[0]} could not be used for {path.name}: ONNX Runtime fell back to "
                f"{session.get_providers()[0]}",
                path=path,
                hint="clipskip doctor says what is missing",
            )
        return OnnxRuntimeEngine(self, artefact, session)

    def describe(self) -> dict[str, str]:
        return {"backend": self.name, "onnxruntime": self._ort.__version__, "provider": self.providers[0]}

    @property
    def device(self) -> str:
        """Where ONNX Runtime keeps the buffers of a loop."""
        return "cpu" if self.providers[0] in (CPU, "OpenVINOExecutionProvider") else "cuda"

    def buffer(self, array: Array) -> Any:
        """A copy of the array on the device."""
        return self._ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), self.device, 0)

    @contextmanager
    def translated(self, path: Path | None = None) -> Iterator[None]:
        """ONNX Runtime's own errors as ours: its types all live in one module, but for the bindings' RuntimeError."""
        try:
            yield
        except MemoryError as error:
            raise DeviceOutOfMemory("there is not enough memory for this request", hint="ask for less") from error
        except Exception as error:
            if type(error) is not RuntimeError and type(error).__module__.partition(".")[0] != "onnxruntime":
                raise
            raise EngineIncompatible(
                f"ONNX Runtime {self._ort.__version__} could not use the graph: {error}", path=path
            ) from error

    def _options(self, role: str) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        if role.startswith("text-"):
            # All depths read the same weights: without prepacking they stay mapped from one file, and a further depth
            # costs megabytes instead of a copy (measured in LOG.md).
            options.add_session_config_entry("session.disable_prepacking", "1")
        return options


class OnnxRuntimeEngine:
    """One session; ONNX Runtime allows concurrent runs."""

    def __init__(self, backend: OnnxRuntime, artefact: Artefact, session: Any) -> None:
        self.artefact = artefact
        self.nbytes = artefact.files[0].size + SESSION_BYTES  # the weights stay mapped from one file
        self._backend = backend
        self._session = session

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = [port.name for port in self.artefact.outputs]
        with self._backend.translated():
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> OnnxRuntimeLoop:
        return OnnxRuntimeLoop(self._backend, self._session, feeds, feedback)

    def close(self) -> None:
        self._session = None


class OnnxRuntimeLoop:
    """Inputs bound once on the device; an output and the input that it feeds swap buffers after each run."""

    def __init__(
        self, backend: OnnxRuntime, session: Any, feeds: Mapping[str, Array], feedback: Mapping[str, str]
    ) -> None:
        self._backend = backend
        self._session = session
        self._feedback = dict(feedback)
        with backend.translated():
            self._binding = session.io_binding()
            self._inputs = {name: backend.buffer(array) for name, array in feeds.items()}
            self._outputs = {name: backend.buffer(feeds[source]) for name, source in feedback.items()}
            for name, value in self._inputs.items():
                self._binding.bind_ortvalue_input(name, value)

    def run(self, feeds: Mapping[str, Array]) -> None:
        with self._backend.translated():
            for name, array in feeds.items():
                self._inputs[name].update_inplace(np.ascontiguousarray(array))
            for name, value in self._outputs.items():
                self._binding.bind_ortvalue_output(name, value)
            self._session.run_with_iobinding(self._binding)
            for name, source in self._feedback.items():
                self._inputs[source], self._outputs[name] = self._outputs[name], self._inputs[source]
                self._binding.bind_ortvalue_input(source, self._inputs[source])

    def read(self, name: str) -> Array:
        return np.array(self._inputs[name].numpy())

    def close(self) -> None:
        self._binding = self._session = None
        self._inputs, self._outputs = {}, {}
