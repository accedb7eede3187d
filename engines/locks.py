"""Locks that die with their process: who is building, and which folders are in use.

Knows nothing of what is built. A lock is an flock, never the mere existence of a file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipskip.engines.errors import StorageError
from clipskip.engines.files import translated

try:
    import fcntl
except ImportError:  # Windows: stores can be read there, which takes no lock, and not built
    fcntl = None  # type: ignore[assignment]

Progress = Callable[[str], None]
_POLL = 0.1  # seconds
_REMIND = 10.0


def hold(folder: Path) -> int | None:
    """A descriptor that marks the folder as in use until it is closed; None where the system has no such locks."""
    return _flock(folder, "LOCK_SH")


def in_use(folder: Path) -> bool:
    """Whether some process holds the folder, or might: a file system that cannot tell counts as yes."""
    descriptor = _flock(folder, "LOCK_EX")
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def _flock(folder: Path, kind: str) -> int | None:
    if fcntl is None:
        return None
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, getattr(fcntl, kind) | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
    return None


@contextmanager
def locked(path: Path, progress: Progress, limit: float = float("inf")) -> Iterator[None]:
    """Hold the lock file `path`, created and removed here; StorageError after `limit` seconds of waiting."""
    began, reminders = time.monotonic(), 0
    while (descriptor := _take(path)) is None:
        waited = time.monotonic() - began
        if waited > limit:
            raise StorageError(f"{path} was not released within {limit:.0f} s", path=path)
        if waited >= reminders * _REMIND:
            progress(f"waiting for another process to release {path}")
            reminders += 1
        time.sleep(_POLL)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)  # first: whoever waits for the file that was here will see that it is gone
        os.close(descriptor)


def remove_stale(path: Path) -> None:
    """Remove a lock file that a killed process left behind; one that is held or not ours stays."""
    with suppress(StorageError), locked(path, lambda line: None, limit=-1):
        pass


def _take(path: Path) -> int | None:
    """The lock file's descriptor once it is ours; None while it is somebody else's."""
    if fcntl is None:
        message = "this system has no flock: engine stores can be read here, not built"
        raise StorageError(message, path=path, hint="export and build in WSL, then read the store from here")
    taken = False
    with translated(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            pass  # held by another; or its holder has just removed this very file, and the lock on it means nothing
        finally:
            if not taken:
                os.close(descriptor)
    return descriptor if taken else None
