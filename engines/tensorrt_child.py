"""One compilation in a child process: what it is given, and what its progress and its end mean.

Knows nothing of TensorRT's API or of stores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipskip.engines import child, files, gpu, hints
from clipskip.engines.errors import BackendUnavailable, ClipskipError, DeviceOutOfMemory, ExportError, RequestError

PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}  # by target

Shape = tuple[int, ...]
Progress = Callable[[str], None]
_SMALLER = "build for smaller shapes: lower --max-batch, --max-chunks or --sizes"
_LESS_MEMORY = f"let the builder use less memory, by a lower --workspace, or {_SMALLER}"
_ERRORS: dict[str, tuple[type[ClipskipError], str]] = {
    "parse": (ExportError, "export the graphs again; if it stays, this package cannot take this graph"),
    "build": (ExportError, _SMALLER),
    "memory": (DeviceOutOfMemory, _LESS_MEMORY),
    "option": (RequestError, "choose another"),
}


@dataclass(frozen=True)
class Job:
    """What one child builds. `profiles`: minimum, optimum and maximum shape of each input with a dynamic axis."""

    target: str  # "tensorrt-rtx" or "tensorrt"
    onnx: str
    engine: str  # where to write
    profiles: Mapping[str, tuple[Shape, Shape, Shape]]
    compute_capabilities: tuple[str, ...] = ()  # "8.9"; none: the package's default
    workspace: int | None = None  # bytes
    timing_cache: str | None = None
    device: int | None = None  # the GPU to time kernels on, in CUDA's numbering


def load_package(target: str) -> Any:
    """The target's package; BackendUnavailable when it cannot be loaded."""
    try:
        return gpu.library(PACKAGES[target])
    except (ImportError, OSError) as error:  # OSError: a library of its own is missing
        message = f"the package {PACKAGES[target]} cannot be loaded ({error})"
        raise files.shortage(error) or BackendUnavailable(message, hint=hints.install(target)) from error


def load_builder(target: str) -> Any:
    """The target's package, if it can build from our graphs: TensorRT knows ONNX's Attention from 10.14 on."""
    trt = load_package(target)
    if not hasattr(trt, "IAttentionInputLayer"):
        message = f"{PACKAGES[target]} {trt.__version__} cannot read the graphs: it does not know attention"
        raise BackendUnavailable(message, hint=hints.install(f"{target}>=10.14"))
    return trt


def known_capabilities(trt: Any) -> list[str]:
    """What TensorRT-RTX can build these networks for: from Ampere (8.0) on, for Turing's (7.5) has no fp32 GEMM."""
    names = [name[2:] for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    return sorted((f"{name[:-1]}.{name[-1]}" for name in names if int(name) >= 80), key=float)


def default_capabilities(trt: Any) -> list[str]:
    """What an engine of TensorRT-RTX that is built without a choice runs on, by the support matrix of 1.0 and later."""
    return [capability for capability in known_capabilities(trt) if capability in ("8.6", "8.9", "12.0")]


@dataclass(frozen=True)
class Outcome:
    """What the manifest records of a compilation that succeeded."""

    decomposed: tuple[str, ...]
    peak_bytes: int


def compile_in_child(role: str, job: Job, progress: Progress) -> Outcome:
    """Run the job. ExportError, DeviceOutOfMemory, BackendUnavailable or RequestError carry TensorRT's own lines."""
    began = spoke = time.monotonic()
    phase = "starting"

    def hear(event: Mapping[str, Any] | None) -> None:
        nonlocal spoke, phase
        if event:
            phase = f"{event['phase']} {event['step']}/{event['steps']}"
        now = time.monotonic()
        if now - spoke >= child.PULSE:
            progress(f"{role}: {phase}, {now - began:.0f} s")
            spoke = now

    work, folder = "clipskip.engines.tensorrt_compile:compile_job", Path(job.engine).parent
    end = child.run(work, job, hear, what=role, folder=folder, hint=_LESS_MEMORY)
    if end["event"] == "built":
        return Outcome(tuple(end["decomposed"]), end["peak_bytes"])
    kind, hint = _ERRORS[end["kind"]]
    said = "\n  ".join(end["lines"]) or "TensorRT said nothing"
    raise kind(f"{role}: TensorRT could not build it:\n  {said}", field=role, hint=hint)
