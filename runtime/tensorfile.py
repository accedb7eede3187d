"""Reads the tensors of small safetensors files with numpy alone, so that the runtime can do without the library."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt

from clipskip.engines.strict import LARGEST as LONGEST_HEADER
from clipskip.engines.tensorfile import read_header

from . import inputs
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


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a safetensors file of at most 64 MiB, by name; links are followed, the content decides the format.

    Raises CheckpointError (UnsafeFileError for pickles) that names the file and says what it is instead.
    """
    data = inputs.read(path, LARGEST + 1)
    try:
        return parse(data)
    except CheckpointError as error:
        raise error.about(os.fspath(path)) from error


def parse(data: bytes) -> dict[str, Tensor]:
    """As `read`, from the file's bytes."""
    if len(data) > LARGEST:
        raise CheckpointError(
            f"the file has more than {LARGEST >> 20} MiB: too much for a textual inversion",
            hint="checkpoints are given to `clipskip export`",
        )
    header = read_header(BytesIO(data), len(data), LONGEST_HEADER)
    return {
        name: Tensor(entry.dtype, entry.shape, data[header.data + entry.begin : header.data + entry.end])
        for name, entry in header.tensors.items()
    }
