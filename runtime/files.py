"""Files that a user names: read whole, up to a limit, and what small safetensors files hold."""

from __future__ import annotations

import os
from io import BufferedReader, BytesIO
from pathlib import Path

from clipskip.engines import hints
from clipskip.engines.files import NotAFileError, open_regular
from clipskip.engines.strict import LARGEST as LONGEST_HEADER
from clipskip.engines.tensorfile import Header, read_header

from .errors import CheckpointError

LARGEST = 64 << 20  # bytes; a textual inversion of 75 vectors in float32 has 0.3 MB


def read(path: str | os.PathLike[str], limit: int) -> bytes:
    """The first `limit` bytes of a file or of what it links to; CheckpointError for a pipe, a folder or nothing."""
    name = os.fspath(path)
    if "\0" in name:
        raise CheckpointError(f"{name!r} is no file name: it contains NUL")
    try:
        with open_regular(Path(os.path.realpath(name))) as file, BufferedReader(file) as reader:
            return reader.read(limit)
    except NotAFileError as error:
        raise CheckpointError(f"{name} {error}", path=name) from error


def header_of(data: bytes) -> Header:
    """What a safetensors file of at most 64 MiB holds. CheckpointError, UnsafeFileError for a pickle."""
    if len(data) > LARGEST:
        message = f"the file has more than {LARGEST >> 20} MiB: too much for a textual inversion"
        raise CheckpointError(message, hint=f"checkpoints are given to `{hints.clipskip()} export`")
    return read_header(BytesIO(data), len(data), LONGEST_HEADER)
