"""One compilation in a child process: starts it, passes on its progress, and turns how it ended into a result or error.

Knows nothing of TensorRT's API or of stores. A child that is killed takes nothing else along, and ends with its parent.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

from clipskip.engines import files, hints
from clipskip.engines.errors import BackendUnavailable, ClipskipError, DeviceOutOfMemory, ExportError, RequestError

PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}  # by target
# Nothing is imported from the working folder, whatever lies there: `python -m` would put it first on the path.
COMMAND = (
    sys.executable,
    "-c",
    "import sys; sys.path = [folder for folder in sys.path if folder]; "
    "from clipskip.engines.tensorrt_compile import main; sys.exit(main())",
)
PULSE = 5.0  # seconds between two lines of progress
LAST_WORDS = 2000  # bytes of a child's stderr that an error shows

Shape = tuple[int, ...]
Progress = Callable[[str], None]
_SMALLER = "build for smaller shapes: lower --max-batch, --max-chunks or --sizes"
_ERRORS: dict[str, tuple[type[ClipskipError], str]] = {
    "parse": (ExportError, "export the graphs again; if it stays, this package cannot take this graph"),
    "build": (ExportError, _SMALLER),
    "memory": (DeviceOutOfMemory, _SMALLER),
    "package": (BackendUnavailable, "the verb `doctor` says more"),
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
        return importlib.import_module(PACKAGES[target])
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
    with tempfile.TemporaryFile() as stderr:
        with _child(job, stderr) as child:
            last = _follow(child, role, progress)
            status = child.wait()
        if last.get("event") == "built" and status == 0:
            return Outcome(tuple(last["decomposed"]), last["peak_bytes"])
        stderr.seek(max(0, stderr.seek(0, 2) - LAST_WORDS))
        raise _failed(role, last, status, stderr.read().decode(errors="replace").strip())


@contextmanager
def _child(job: Job, stderr: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """The child at work. Its stdin stays open: the end of it tells the child that we are gone."""
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True) as child:
        assert child.stdin is not None
        try:
            with suppress(BrokenPipeError):  # one that is dead already tells so by its status
                child.stdin.write(json.dumps(asdict(job)) + "\n")
                child.stdin.flush()
            yield child
        finally:
            child.kill()  # it has ended, or nobody waits for it any more
            with suppress(BrokenPipeError):
                child.stdin.close()


def _follow(child: subprocess.Popen[str], role: str, progress: Progress) -> dict[str, Any]:
    """The child's last event; about every `PULSE` seconds a line that says how far it is."""
    began = spoke = time.monotonic()
    phase, event = "starting", dict[str, Any]()
    for line in child.stdout or ():
        if line.endswith("\n"):  # the last line of one that was killed may be cut
            event = json.loads(line) or event  # an empty one only says that the child is alive
        if event.get("event") == "progress":
            phase = f"{event['phase']} {event['step']}/{event['steps']}"
        now = time.monotonic()
        if now - spoke >= PULSE:
            progress(f"{role}: {phase}, {now - began:.0f} s")
            spoke = now
    return event


def _failed(role: str, last: dict[str, Any], status: int, stderr: str) -> ClipskipError:
    """The error for a child that gave no engine: its own account, or how it ended when it gave none."""
    if last.get("event") == "failed":
        kind, hint = _ERRORS[last["kind"]]
        said = "\n  ".join(last["lines"]) or stderr or "TensorRT said nothing"
        return kind(f"{role}: TensorRT could not build it:\n  {said}", field=role, hint=hint)
    if status == -9:
        message = f"{role}: the compiling process was killed; was it out of memory?"
        return ExportError(message, field=role, hint=_SMALLER)
    return ExportError(f"{role}: the compiling process ended with status {status}:\n  {stderr}", field=role)
