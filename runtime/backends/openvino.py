"""OpenVINO on the CPU: the exported graphs, in single precision or, where it is asked for, in bfloat16."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from clipskip.engines import files, hints
from clipskip.engines.manifest import Artefact
from clipskip.errors import BackendUnavailable, DeviceOutOfMemory, EngineIncompatible, RequestError

from . import Array, cores
from .onnxruntime import CPU_PIXELS, LOOPS
from .sessions import SESSION_BYTES
from .signature import check_like, check_ports

PARTS = ("text", "step", "decode", "encode")
TYPES = {"i64": "int64", "i32": "int32", "f32": "float32", "f16": "float16", "u8": "uint8", "boolean": "bool"}


class OpenVino:
    """Runs exported graphs on the CPU.

    `bf16`: which parts of the model ("text", "step", "decode", "encode") compute in bfloat16, whose eight bits change
    pictures: by default none. `threads`: of one engine (default: as many as this process may use cores).
    BackendUnavailable without the package, and for bfloat16 on a processor that has none.
    """

    target, precision = "onnx", "fp32"
    variants: tuple[str, ...] = ("",)
    proof: str | None = None
    batch_pixels, loops, compiles_per_shape = CPU_PIXELS, LOOPS, False

    def __init__(self, bf16: Sequence[str] = (), threads: int | None = None) -> None:
        if strange := sorted({*bf16}.difference(PARTS)):
            raise RequestError(f"bf16 takes {', '.join(PARTS)}, not {strange[0]!r:.40}", field="bf16")
        try:
            self._library: Any = _without_telemetry()
        except (ImportError, OSError) as error:
            absent = isinstance(error, ModuleNotFoundError)
            message = "OpenVINO is not installed" if absent else f"OpenVINO cannot be loaded ({error})"
            raise files.shortage(error) or BackendUnavailable(message, hint=hints.install("openvino")) from error
        self._core, self._bf16 = self._library.Core(), tuple(bf16)
        self.threads = threads or cores()
        if bf16 and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            processor = self._core.get_property("CPU", "FULL_DEVICE_NAME")
            message = f"this processor ({processor}) has no bfloat16: it would be slower than single precision"
            raise BackendUnavailable(message, hint="use the target openvino")
        self.name = "openvino-bf16" if bf16 else "openvino"
        self._made = self._bf16, threads

    def __reduce__(self) -> tuple[type[OpenVino], tuple[object, ...]]:
        return OpenVino, self._made  # the library itself cannot be pickled

    def open(self, artefact: Artefact, path: Path) -> OpenVinoEngine:
        """Compile the graph for every shape. EngineIncompatible where OpenVINO cannot."""
        precision = "bf16" if artefact.role.part in self._bf16 else "f32"
        settings = {
            "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": self.threads, "NUM_STREAMS": 1,
            "EXECUTION_MODE_HINT": "PERFORMANCE" if precision == "bf16" else "ACCURACY",
        }  # fmt: skip
        try:
            compiled = self._core.compile_model(self._core.read_model(str(path)), "CPU", settings)
        except RuntimeError as error:  # of its own types, all of which are this
            message = f"OpenVINO cannot open {path.name}: {_short(error)}"
            raise files.shortage(error) or EngineIncompatible(message, path=path) from error
        inputs, outputs = (
            {
                port.any_name: (TYPES.get(port.element_type.get_type_name(), ""), len(port.partial_shape))
                for port in ports
            }
            for ports in (compiled.inputs, compiled.outputs)
        )
        check_ports(artefact, path, "", inputs, outputs)
        return OpenVinoEngine(artefact, compiled, self._library.Tensor)

    def describe(self) -> dict[str, str]:
        """Library version and processor."""
        version, processor = self._library.__version__, self._core.get_property("CPU", "FULL_DEVICE_NAME")
        return {"backend": self.name, "openvino": version, "processor": processor, "bf16": ", ".join(self._bf16)}


class OpenVinoEngine:
    """One compiled graph; `tensor` is OpenVINO's type of one."""

    def __init__(self, artefact: Artefact, compiled: Any, tensor: Any) -> None:
        self.artefact, self._compiled, self._tensor = artefact, compiled, tensor
        self.nbytes = SESSION_BYTES + sum(file.size for file in artefact.files)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        request = _Request(self._compiled, self._tensor, feeds)
        request.infer()
        return {port.name: np.array(request.output(port.name)) for port in self.artefact.outputs}

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> OpenVinoLoop:
        return OpenVinoLoop(_Request(self._compiled, self._tensor, feeds), feedback)

    def close(self) -> None:
        self._compiled = None


class _Request:
    """One run's inputs, in arrays of its own that OpenVINO reads where they are, and its outputs."""

    def __init__(self, compiled: Any, tensor: Any, feeds: Mapping[str, Array]) -> None:
        self.inputs = {name: np.array(array, order="C") for name, array in feeds.items()}
        with _running():
            self._request = compiled.create_infer_request()
            for name, array in self.inputs.items():
                self._request.set_tensor(name, tensor(array, shared_memory=True))

    def infer(self) -> None:
        with _running():
            self._request.infer()

    def output(self, name: str) -> Array:
        """A view of it, until the next run."""
        return np.asarray(self._request.get_tensor(name).data)


class OpenVinoLoop:
    """Inputs that stay bound over many runs. An output is copied to the input that it feeds."""

    def __init__(self, request: _Request, feedback: Mapping[str, str]) -> None:
        self._request: _Request | None = request
        self._inputs, self._feedback = request.inputs, feedback

    def write(self, name: str, slot: int, array: Array) -> None:
        check_like(self._inputs[name][slot], name, array)
        self._inputs[name][slot] = array

    def run(self, feeds: Mapping[str, Array]) -> None:
        assert self._request is not None
        for name, array in feeds.items():
            check_like(self._inputs[name], name, array)
            self._inputs[name][...] = array
        self._request.infer()
        for name, source in self._feedback.items():
            self._inputs[source][...] = self._request.output(name)

    def read(self, name: str, slot: int | None = None) -> Array:
        values = self._inputs[name]
        return np.array(values if slot is None else values[slot])

    def close(self) -> None:
        self._request = None


def _without_telemetry() -> Any:
    """The library; without this, it reports to its maker when it is imported, and leaves files in the user's folder."""
    name, modules = "openvino_telemetry", cast("dict[str, ModuleType | None]", sys.modules)
    unknown, there = name not in modules, modules.get(name)
    modules[name] = there  # None: whoever imports it is told that it is not installed, and OpenVINO does without
    try:
        return importlib.import_module("openvino")
    finally:
        if unknown:
            del modules[name]


@contextmanager
def _running() -> Iterator[None]:
    """A verified graph with checked inputs fails on the CPU for want of memory alone."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise DeviceOutOfMemory(
            f"OpenVINO failed while it ran a graph: {_short(error)}", hint="ask for smaller pictures or fewer at once"
        ) from error


def _short(error: BaseException) -> str:
    """The last line of what OpenVINO says: the others name its source files."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
