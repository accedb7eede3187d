"""The header of a safetensors file, read without trusting any of its numbers: which tensors there are, and where.

Proves that the tensors fill the file exactly. Knows nothing of what they are for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from clipskip.engines import strict
from clipskip.engines.errors import CheckpointError, ManifestError, UnsafeFileError, UnsupportedModelError

LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit

_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
_SIZES |= {"U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8}
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
READABLE = {*_FLOATS, "BF16"}  # what `floats` takes
_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")  # of pickle, behind its first byte 0x80

CONVERT = (
    "open it once where you trust it, with torch.load(..., weights_only=True), and write its tensors with "
    "safetensors.torch.save_file"
)


@dataclass(frozen=True)
class Entry:
    """One tensor; `begin` and `end` count bytes from where the data begins, `dtype` is safetensors' name ("BF16")."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The tensors by name, the place in the file where their data begins, and what the file says of itself."""

    tensors: Mapping[str, Entry]
    data: int
    metadata: Mapping[str, str]


def read_header(file: BinaryIO, size: int, longest: int = LONGEST_HEADER) -> Header:
    """The header of the file of `size` bytes that is opened at its beginning.

    Raises CheckpointError (UnsafeFileError for a pickle, UnsupportedModelError for GGUF) that says what it is.
    """
    start = file.read(64)
    if not start:
        raise CheckpointError("the file is empty (0 bytes)")
    _refuse_foreign(start)
    length = int.from_bytes(start[:8], "little")
    if size < 8 or 8 + length > size:
        raise CheckpointError(f"no safetensors file, or one cut off in its header ({size} bytes are there)")
    if length > longest:
        raise CheckpointError(f"a header of {length} bytes is more than any such file needs ({longest})")
    file.seek(8)
    try:
        tree = strict.parse(file.read(length), longest)
    except ManifestError as error:
        raise CheckpointError(f"the header is broken: {error.message}") from error
    metadata = tree.pop("__metadata__", {}) if isinstance(tree, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("the header is broken: it is no object, or its metadata is not all text")
    tensors = {name: _entry(name, value) for name, value in tree.items()}
    _check_layout(tensors, size - 8 - length)
    return Header(tensors, 8 + length, metadata)


def floats(data: bytes | memoryview, header: Header, name: str) -> npt.NDArray[np.float32]:
    """A tensor of that file in float32. UnsupportedModelError if it holds integers or an 8-bit format."""
    tensor = header.tensors[name]
    body = data[header.data + tensor.begin : header.data + tensor.end]
    if tensor.dtype == "BF16":
        return (np.frombuffer(body, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)
    if tensor.dtype not in _FLOATS:
        raise UnsupportedModelError(f"holds {tensor.dtype} numbers; F16, BF16, F32 and F64 are supported")
    with np.errstate(over="ignore"):  # a float64 that becomes infinite is refused with the other infinities
        return np.frombuffer(body, _FLOATS[tensor.dtype]).astype(np.float32).reshape(tensor.shape)


def _refuse_foreign(start: bytes) -> None:
    """Refuse what the first bytes show to be something else. A safetensors header has its `{` at byte 8."""
    if start[8:9] == b"{":
        return
    text = start.lstrip().lower()
    if start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1:2] in _PROTOCOLS):
        raise UnsafeFileError("this is a pickle (.pt, .bin, .ckpt), which can run code when it is read", hint=CONVERT)
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError("this is a Git LFS pointer, not the file itself", hint="run `git lfs pull`")
    if text.startswith(b"<"):
        raise CheckpointError("this is a web page, not the file itself", hint="download it again, logged in if need be")
    if start.startswith(b"GGUF"):
        raise UnsupportedModelError("this is a GGUF file; safetensors is supported")


def _entry(name: str, value: Any) -> Entry:
    broken = CheckpointError(f"the header is broken at tensor {name[:100]!r}")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise broken
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES or not _naturals(shape) or not _naturals(offsets):
        raise broken
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * _SIZES[dtype]:
        raise broken
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_layout(tensors: Mapping[str, Entry], size: int) -> None:
    """The tensors must fill the data exactly: no overlap, no hole, nothing missing, nothing after them."""
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise CheckpointError(f"the header is broken at tensor {name[:100]!r}: overlap or hole before it")
        end = entry.end
    if size < end:
        raise CheckpointError(f"{size} of {end} bytes of tensors are there: the download is incomplete")
    if size > end:
        raise CheckpointError(f"{size - end} extra bytes after the last tensor")
