"""A TensorRT builder's settings, and what it says while it works. `trt` is the package: tensorrt_rtx or tensorrt.

Knows nothing of networks or files, timing caches apart.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipskip.engines.errors import BackendUnavailable

PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}  # by target
Shape = tuple[int, ...]
Report = Callable[[dict[str, Any]], None]
LINES = 20  # of the library's own words in an error message


def load_package(target: str) -> Any:
    """The target's package; BackendUnavailable when it cannot be loaded."""
    try:
        return importlib.import_module(PACKAGES[target])
    except (ImportError, OSError) as error:  # OSError: a library of its own is missing
        hint = f'pip install "clipskip[{target}]"'
        raise BackendUnavailable(f"the package {PACKAGES[target]} cannot be loaded ({error})", hint=hint) from error


def load_builder(target: str) -> Any:
    """The target's package, if it can build from our graphs: TensorRT knows ONNX's Attention from 10.14 on."""
    trt = load_package(target)
    if not hasattr(trt, "IAttentionInputLayer"):
        message = f"{PACKAGES[target]} {trt.__version__} cannot read the graphs: it does not know attention"
        raise BackendUnavailable(message, hint=f'pip install --upgrade "clipskip[{target}]": 10.14 or newer is needed')
    return trt


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


class BuildError(Exception):
    """`kind` is "option", "parse", "memory" or "build"; `lines` are the library's own words."""

    def __init__(self, kind: str, lines: list[str]) -> None:
        super().__init__(kind)
        self.kind = kind
        self.lines = lines[-LINES:]


@dataclass
class Log:
    """What the library said: errors with their codes, and warnings."""

    errors: list[tuple[Any, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [text for _, text in self.errors] or self.warnings


def capture(trt: Any, log: Log) -> tuple[Any, Any]:
    """A logger and an error recorder of `trt` that write into `log`; with a recorder, errors come with their codes."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                log.errors.append((None, message))
            elif severity == trt.ILogger.Severity.WARNING:
                log.warnings.append(message)

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        def report_error(self, code: Any, text: str) -> bool:
            log.errors.append((code, text))
            return True

        def num_errors(self) -> int:
            return len(log.errors)

        def get_error_code(self, index: int) -> Any:
            return log.errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return log.errors[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            log.errors.clear()

    return Logger(), Recorder()


def monitor(trt: Any, report: Report) -> Any:
    """TensorRT's progress monitor: one event for each outermost phase and for each of its steps."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.outer: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.outer[phase] = steps
                report({"event": "progress", "phase": phase, "step": 0, "steps": steps})

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.outer:
                report({"event": "progress", "phase": phase, "step": step + 1, "steps": self.outer[phase]})
            return True

        def phase_finish(self, phase: str) -> None:
            self.outer.pop(phase, None)

    return Monitor()


def out_of_memory(trt: Any, log: Log) -> bool:
    """Whether one of the recorded error codes says so; the words are not looked at."""
    return any(code == trt.ErrorCodeTRT.FAILED_ALLOCATION for code, _ in log.errors)


def configure(trt: Any, builder: Any, job: Job) -> Any:
    """The job's options as a builder configuration with one optimisation profile."""
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shapes in job.profiles.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    set_compute_capabilities(trt, config, job.compute_capabilities)
    if job.timing_cache is not None:
        set_timing_cache(config, Path(job.timing_cache))
    return config


def set_compute_capabilities(trt: Any, config: Any, wanted: tuple[str, ...]) -> None:
    """Ask for an engine that holds code for each of `wanted` ("8.9"); nothing is asked for when it is empty."""
    if wanted:
        config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
        if member is None or not config.set_compute_capability(member, index):
            known = ", ".join(sorted(name for name in dir(trt.ComputeCapability) if name.startswith("SM")))
            raise BuildError("option", [f"compute capability {capability} is none of this package's: {known}"])


def set_timing_cache(config: Any, path: Path) -> None:
    """Start from the timings of earlier builds; a cache that is unreadable or another device's is never needed."""
    data = path.read_bytes() if path.is_file() else b""
    if not data or not config.set_timing_cache(config.create_timing_cache(data), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
