"""Weights that a user names: readable, whole and a safetensors file, before any library opens them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from clipskip.engines import tensorfile
from clipskip.engines.errors import CheckpointError
from clipskip.engines.tensorfile import Entry as Tensor

__all__ = ["Tensor", "check_readable", "read_header"]


def read_header(path: Path) -> Mapping[str, Tensor]:
    """The tensors of the file by name. CheckpointError where the file is not whole, UnsafeFileError for a pickle."""
    size = check_readable(path).st_size
    try:
        with path.open("rb") as file:
            return tensorfile.read_header(file, size).tensors
    except CheckpointError as error:
        raise error.about(path) from error


def check_readable(path: Path) -> os.stat_result:
    """The state of a regular file that we may read; CheckpointError says why not. Links are followed."""
    try:
        state = path.stat()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", path=path) from error
    if not stat.S_ISREG(state.st_mode):
        kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe or a device"
        raise CheckpointError(f"expected a file, found {kind}: {path}", path=path)
    if not os.access(path, os.R_OK):
        raise CheckpointError(f"no permission to read {path}", path=path, hint="check owner and mode")
    return state
