"""Which large files were proved before, by this user, and have not changed since: a SHA-256 for each state of a file.

Only for bytes that are data to whoever reads them. Knows nothing of stores, and decides nothing: see `store.stamped`.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path

from clipskip.engines import files
from clipskip.engines.errors import StorageError

NAME = "proved.json"  # in the user's own folder
LEAST = 64 << 20  # bytes of a file: less is hashed in a moment, and small models leave nothing in the user's folders
MOST, LARGEST = 1000, 1 << 19  # stamps, and bytes of them all
SETTLED = 2_000_000_000  # nanoseconds: the coarsest clock of a file system, which could hide a second change

State = tuple[int, ...]


def settled(state: State) -> bool:
    """Whether whatever changes the file from now on changes its times as well."""
    return time.time_ns() - max(state[-2:]) > SETTLED


def proved(state: State) -> str | None:
    """The SHA-256 of a file in this state, if it was taken."""
    return _all().get(_name(state))


def sha256_of(file: FileIO, state: State) -> str:
    """The SHA-256 of a file in this state, kept for other processes where the state will tell of every change."""
    keep = state[0] >= LEAST and settled(state)
    digest = files.sha256_of(file)
    if keep and files.state_of(file) == state and (path := _path()):
        latest = {**_all(), _name(state): digest}
        text = json.dumps(dict([*latest.items()][-MOST:]))
        temporary = path.with_name(f".{NAME}-{secrets.token_hex(4)}")
        with suppress(OSError):  # a full disk: it is hashed again
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(descriptor, "w", encoding="ascii") as out:
                    out.write(text)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    return digest


def _all() -> dict[str, str]:
    """All stamps, the oldest first; none where anybody else may have written them."""
    if path := _path():
        with suppress(OSError, ValueError, StorageError, files.NotAFileError), files.open_regular(path) as file:
            mode = os.fstat(file.fileno())
            text = file.read(LARGEST) if mode.st_uid == os.geteuid() and not mode.st_mode & 0o077 else b"{}"
            stamps = json.loads(text)
            return stamps if isinstance(stamps, dict) else {}
    return {}


def _path() -> Path | None:
    """Where they are; nowhere on Windows, whose files do not tell when they last changed."""
    folder = files.own_folder() if hasattr(os, "geteuid") else None
    return folder and folder / NAME


def _name(state: State) -> str:
    return "-".join(map(str, state))
