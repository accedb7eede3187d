"""Work in a process of its own: one that is killed takes nothing else along, and it ends with its parent.

Knows nothing of the work. What it is given and what it tells goes pickled through its own two pipes.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from select import select
from threading import Lock, Thread
from typing import IO, Any

from clipskip.engines import files
from clipskip.engines.errors import ClipskipError, DeviceOutOfMemory, ExportError

# Nothing is imported from the working folder, whatever lies there: `python -m` would put it first on the path.
COMMAND = (
    sys.executable,
    "-c",
    "import sys; sys.path = [folder for folder in sys.path if folder]; from clipskip.engines.child import main; main()",
)
PULSE = 5.0  # seconds between two signs of life
LAST_WORDS = 2000  # bytes of a child's stderr that an error shows
_OF_MEMORY = (-9, -6)  # SIGKILL, by the system; SIGABRT, by a C++ library that gets none

Hear = Callable[[Any], object]


def run(work: str, job: object, hear: Hear, *, what: str, folder: Path, hint: str) -> Any:
    """What the function "module:name" gives for `job` in a child; what it raises that has a name is raised here too.

    `hear` gets what it reports, and None at least every `PULSE` seconds. `folder`: for its temporary files. Where it
    ends without a word, DeviceOutOfMemory with `hint` or ExportError say so of `what`.
    """
    with tempfile.TemporaryFile(dir=folder) as stderr:
        with _started((work, job), stderr, folder) as child:
            kind, content = "report", None
            with suppress(EOFError, pickle.UnpicklingError):  # the last word of one that was killed may be cut
                while kind == "report":
                    hear(content)
                    kind, content = pickle.load(child.stdout)  # type: ignore[arg-type]
            status = child.wait() if kind == "report" else 0
        if isinstance(content, Exception):
            raise content
        if kind == "result":
            return content
        stderr.seek(max(0, stderr.seek(0, 2) - LAST_WORDS))
        raise _lost(what, status, hint, stderr.read().decode(errors="replace").strip())


@contextmanager
def _started(task: tuple[str, object], stderr: IO[bytes], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The child at work. Its stdin stays open: the end of it tells the child that we are gone."""
    surroundings = {**os.environ, "TMPDIR": str(folder.absolute())}
    pipe = subprocess.PIPE
    with subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, stderr=stderr, env=surroundings) as child:
        assert child.stdin is not None
        try:
            with suppress(BrokenPipeError):  # one that is dead already tells so by its status
                pickle.dump(task, child.stdin)
                child.stdin.flush()
            yield child
        finally:
            child.kill()  # it has ended, or nobody waits for it any more
            with suppress(BrokenPipeError):
                child.stdin.close()


def _lost(what: str, status: int, hint: str, words: str) -> ClipskipError:
    """The error for a child that gave no account of its end. Under a limit, every way to end may be lack of memory."""
    import resource  # which Windows has not, where nothing is built

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    said = f":\n  {words}" if words else ""
    if status in _OF_MEMORY or any(limit != resource.RLIM_INFINITY for limit in limits):
        return DeviceOutOfMemory(f"{what}: its process was killed (out of memory?){said}", field=what, hint=hint)
    return ExportError(f"{what}: its process ended with status {status}{said}", field=what)


def main() -> None:
    """The child's own side. Only what is told goes to the real stdout; what a library prints goes to stderr."""
    told, turn = os.fdopen(os.dup(1), "wb"), Lock()
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both: the parent puts away, and ends us
    work, job = pickle.load(sys.stdin.buffer)

    def tell(kind: str, content: object) -> None:
        with turn:
            pickle.dump((kind, content), told)
            told.flush()

    def live_with_parent() -> None:
        while not select([0], [], [], PULSE)[0]:
            with suppress(BrokenPipeError):
                tell("report", None)
        os._exit(1)  # stdin has ended, for whoever held its other end is gone: nobody waits for this any more

    Thread(target=live_with_parent, daemon=True).start()
    module, _, function = work.partition(":")
    try:
        with files.shortage_named():
            result = getattr(importlib.import_module(module), function)(job, lambda report: tell("report", report))
        tell("result", result)
    except (ClipskipError, ImportError) as error:
        tell("error", error)
    except Exception as error:
        tell("error", files.full_disk(error) or RuntimeError(f"in a child process:\n{traceback.format_exc()}"))
