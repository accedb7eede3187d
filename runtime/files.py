"""Files that a user names: read whole, up to a limit; and the tensors of small safetensors files, with numpy alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipskip.engines.files import NotAFileError, open_regular
from clipskip.engines.strict import LARGEST as LONGEST_HEADER
from clipskip.engines.tensorfile import read_header

from .errors import CheckpointError, UnsupportedModelError

LARGEST = 64 << 20  # bytes; a textual inversion of 75 vectors in float32 has 0.3 MB

_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True)
class Tensor:
    """One tensor as it lies in the file; `dtype` is safetensors' name, such as "BF16"."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def floats(self) -> npt.NDArray[np.float32]:
        """The tensor in float32. UnsupportedModelError if it holds integers or an 8-bit format."""
        if self.dtype == "BF16":
            bits = np.frombuffer(self.data, "<u2").astype(np.uint32) << 16
            return bits.view(np.float32).reshape(self.shape)
        if self.dtype not in _FLOATS:
            raise UnsupportedModelError(f"holds {self.dtype} numbers; F16, BF16, F32 and F64 are supported")
        with np.errstate(over="ignore"):  # a float64 that becomes infinite is refused with the other infinities
            return np.frombuffer(self.data, _FLOATS[self.dtype]).astype(np.float32).reshape(self.shape)


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


def tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file of at most 64 MiB, by name. CheckpointError, UnsafeFileError for a pickle."""
    if len(data) > LARGEST:
        message = f"the file has more than {LARGEST >> 20} MiB: too much for a textual inversion"
        raise CheckpointError(message, hint="checkpoints are given to `clipskip export`")
    header = read_header(BytesIO(data), len(data), LONGEST_HEADER)
    body = memoryview(data)[header.data :]
    return {
        name: Tensor(tensor.dtype, tensor.shape, bytes(body[tensor.begin : tensor.end]))
        for name, tensor in header.tensors.items()
    }
