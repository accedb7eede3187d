"""What takes long to make and can be made again: a folder for each, in the user's own one, within a limit of bytes.

A library reads these files as they are, so they are used only in the very state in which this user's process left
them: a record beside them has size, device, inode and times of each. Knows nothing of what is in them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from clipskip.engines import files, locks, stamps
from clipskip.engines.errors import StorageError
from clipskip.engines.files import readable_size

FOLDER, RECORD = "prepacked", "record.json"
LIMIT_VARIABLE, LIMIT = "CLIPSKIP_CACHE_GIB", "20"
RESERVE = 2 << 30  # bytes of the disk that stay free
PATIENCE = 50  # tenths of a second, within which files that were written show later changes
_told: set[str] = set()  # each is said once in a process


def limit() -> int:
    """The most bytes that may be kept; for what is no number from 0 on the default, which is said once."""
    typed = os.environ.get(LIMIT_VARIABLE, LIMIT)
    with suppress(ValueError, OverflowError):
        if (most := int(float(typed) * 2**30)) >= 0:
            return most
    _say(f"{LIMIT_VARIABLE} is a number of GiB such as 20 or 0.5, and 0 for none, not {typed!r}: {LIMIT} is taken")
    return int(LIMIT) << 30


def folder(name: str, needs: int, make: Callable[[Path], object]) -> Path | None:
    """The folder `name` as `make` filled it, now or earlier; None where it cannot be kept, which is said once.

    `needs`: bytes that it takes at most. Who finds another process at work does without.
    """
    own, most = files.own_folder(), limit()
    if own is None or not most or not hasattr(os, "geteuid"):  # Windows: times do not tell of every change
        return None
    place = own / FOLDER / name
    if not intact(place):
        try:
            if needs > most:
                raise files.full(own, readable_size(needs), f" (where {LIMIT_VARIABLE} allows {readable_size(most)})")
            place.parent.mkdir(mode=0o700, exist_ok=True)
            with locks.locked(place.parent / ".lock", lambda line: None, limit=-1):
                if not intact(place):
                    _make(place, needs, make)
                    trim(place.parent, most, place)
        except (OSError, StorageError) as error:
            if not (place.parent / ".lock").exists():  # else another process is at work
                _say(f"weights are not kept as this processor takes them, which costs time at every start: {error}")
            return None
    with suppress(OSError):
        os.utime(place)  # the least recently used goes first
    return place


def intact(place: Path) -> bool:
    """Whether a folder is there, and its files in the state in which they were left."""
    with suppress(OSError, ValueError, AttributeError, StorageError, files.NotAFileError):
        with files.open_regular(place / RECORD) as file:
            record = json.loads(file.read(stamps.LARGEST))
        return {path.name for path in place.iterdir()} == {RECORD, *record} and record == _states(place, record)
    return False


def trim(root: Path, most: int, needed: Path | None = None) -> None:
    """Remove what was used least recently, until the rest takes at most so many bytes."""
    kept = sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime_ns)
    excess = sum(map(files.folder_size, kept)) - most
    for path in kept:
        if excess > 0 and path != needed:
            excess -= files.folder_size(path)
            shutil.rmtree(path, ignore_errors=True)


def clear(*, dry_run: bool = False) -> dict[str, int]:
    """Remove all that this user's folder has, in use or not; gives names and sizes in bytes."""
    if (own := files.own_folder()) is None:
        return {}
    with files.translated(own):
        sizes = {
            str(path.relative_to(own)): files.folder_size(path) if path.is_dir() else path.lstat().st_size
            for path in sorted([*own.iterdir(), *(own / FOLDER).glob("*")])
            if path.name != FOLDER and not path.name.endswith(".lock")
        }
        for name in () if dry_run else sizes:
            path = own / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return sizes


def _make(place: Path, needs: int, make: Callable[[Path], object]) -> None:
    """Fill the folder under another name, flush it, and name it; under the lock, so what is half-made is nobody's."""
    for path in (place, *place.parent.glob(".tmp-*")):
        shutil.rmtree(path, ignore_errors=True)
    if needs + RESERVE > shutil.disk_usage(place.parent).free:
        raise files.full(place.parent, readable_size(needs + RESERVE))
    _say(f"up to {readable_size(needs)} go into {place}, once, for faster starts ({LIMIT_VARIABLE}=0: never)")
    temporary = place.with_name(f".tmp-{place.name}")
    try:
        temporary.mkdir(mode=0o700)
        make(temporary)
        names = sorted(path.name for path in temporary.iterdir())
        for name in names:
            files.flush(temporary / name)
        for _ in range(PATIENCE):
            if all(stamps.settled(tuple(state)) for state in _states(temporary, names).values()):
                break
            time.sleep(0.1)
        else:
            raise StorageError(f"the clock of {place.parent} is ahead of this machine's", path=place.parent)
        (temporary / RECORD).write_text(json.dumps(_states(temporary, names)))
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _say(message: str) -> None:
    if message not in _told:
        _told.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def _states(place: Path, names: Iterable[str]) -> dict[str, list[int]]:
    found = {}
    for name in names:
        with files.open_regular(place / name) as file:
            found[name] = [*files.state_of(file)]
    return found
