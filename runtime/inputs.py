"""Files that a user names: read whole, up to a limit. Knows nothing of their formats."""

from __future__ import annotations

import os
from io import BufferedReader
from pathlib import Path

from clipskip.engines.files import NotAFileError, open_regular

from .errors import CheckpointError


def read(path: str | os.PathLike[str], limit: int) -> bytes:
    """The file's first `limit` bytes; symbolic links are followed, as in the Hugging Face cache.

    Raises CheckpointError if there is no regular file (a pipe or a device is not waited for), StorageError if it
    cannot be read.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise CheckpointError(f"{name!r} is no file name: it contains NUL")
    try:
        with open_regular(Path(os.path.realpath(name))) as file, BufferedReader(file) as reader:
            return reader.read(limit)
    except NotAFileError as error:
        raise CheckpointError(f"{name} {error}", path=name) from error
