"""One compilation in a child process: starts it, passes on its progress, and turns how it ended into a result or error.

Knows nothing of TensorRT's API or of stores. A child that is killed takes nothing else along.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from threading import Thread
from typing import IO, Any

from clipskip.engines.errors import BackendUnavailable, ClipskipError, DeviceOutOfMemory, ExportError, RequestError
from clipskip.engines.tensorrt_config import Job

COMMAND = (sys.executable, "-m", "clipskip.engines.tensorrt_compile")
PULSE = 5.0  # seconds without a word after which a build says that it is alive
LAST_WORDS = 2000  # bytes of a child's stderr that an error shows

Progress = Callable[[str], None]
Lines = queue.Queue[str | None]
_SMALLER = "build for smaller shapes: lower --max-batch, --max-chunks or --sizes"
_ERRORS: dict[str, tuple[type[ClipskipError], str]] = {
    "parse": (ExportError, "export the graphs again; if it stays, this package cannot take this graph"),
    "build": (ExportError, _SMALLER),
    "memory": (DeviceOutOfMemory, _SMALLER),
    "package": (BackendUnavailable, "run clipskip doctor"),
    "option": (RequestError, "choose another"),
}


@dataclass(frozen=True)
class Outcome:
    """What the manifest records of a compilation that succeeded."""

    decomposed: tuple[str, ...]
    peak_bytes: int


def compile_in_child(role: str, job: Job, progress: Progress) -> Outcome:
    """Run the job. ExportError, DeviceOutOfMemory, BackendUnavailable or RequestError carry TensorRT's own lines."""
    with tempfile.TemporaryFile() as stderr:
        with _child(job, stderr) as (child, lines):
            last = _follow(lines, role, progress)
            status = child.wait()
        if last.get("event") == "built" and status == 0:
            return Outcome(tuple(last["decomposed"]), last["peak_bytes"])
        raise _failed(role, last, status, _tail(stderr))


@contextmanager
def _child(job: Job, stderr: IO[bytes]) -> Iterator[tuple[subprocess.Popen[str], Lines]]:
    """The child at work, and its lines as they come, None after the last."""
    lines: Lines = queue.Queue()
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True) as child:
        assert child.stdin is not None
        reader = Thread(target=_read, args=(child.stdout, lines))
        reader.start()
        try:
            with suppress(BrokenPipeError), child.stdin as stream:  # one that is dead already tells so by its status
                stream.write(json.dumps(asdict(job)))
            yield child, lines
        finally:
            child.kill()  # it has ended, or nobody waits for it any more
            reader.join()


def _read(stream: IO[str], lines: Lines) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _follow(lines: Lines, role: str, progress: Progress) -> dict[str, Any]:
    """The child's last event; whenever `PULSE` seconds have gone by, a line that says how far it is."""
    began = spoke = time.monotonic()
    phase, event = "starting", {}
    while (line := _next(lines, PULSE)) is not None:
        if line.endswith("\n"):  # the last line of one that was killed may be cut
            event = json.loads(line)
        if event.get("event") == "progress":
            phase = f"{event['phase']} {event['step']}/{event['steps']}"
        now = time.monotonic()
        if now - spoke >= PULSE:
            progress(f"{role}: {phase}, {now - began:.0f} s")
            spoke = now
    return event


def _next(lines: Lines, seconds: float) -> str | None:
    try:
        return lines.get(timeout=seconds)
    except queue.Empty:
        return ""


def _tail(stderr: IO[bytes]) -> str:
    size = stderr.seek(0, 2)
    stderr.seek(max(0, size - LAST_WORDS))
    return stderr.read().decode(errors="replace").strip()


def _failed(role: str, last: dict[str, Any], status: int, stderr: str) -> ClipskipError:
    """The error for a child that gave no engine: its own account, or how it ended when it gave none."""
    if last.get("event") == "failed":
        kind, hint = _ERRORS[last["kind"]]
        said = "\n  ".join(last["lines"]) or stderr or "TensorRT said nothing"
        return kind(f"{role}: TensorRT could not build it:\n  {said}", field=role, hint=hint)
    if status == -9:
        return ExportError(
            f"{role}: the compiling process was killed; was it out of memory?", field=role, hint=_SMALLER
        )
    return ExportError(f"{role}: the compiling process ended with status {status}:\n  {stderr}", field=role)
