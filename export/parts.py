"""One network of a checkpoint, where its weights lie, and how a checkpoint's files are looked at. Reads no tensor."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipskip.engines import files, tensorfile
from clipskip.engines.errors import CheckpointError, ExportError, UnsupportedModelError
from clipskip.engines.identify import describe_keys
from clipskip.engines.shapes import Shape
from clipskip.engines.tensorfile import Entry, Header

State = tuple[int, int, int, int]
Config = Mapping[str, Any]
LARGEST_JSON = 16 << 20  # bytes; a CLIP vocabulary has one
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_BESIDE = re.compile(r"(?:.*\.)?(?:position_ids|scaled_fp8|comfy_quant|scale_input|input_scale)")
# Positions of text are always 0 to 76; the others say how a program computes in fp8, and not what the weights are.


@dataclass(frozen=True)
class Place:
    """Where a weight lies: the stored tensor, which of its thirds, and the tensor with the factors for its rows."""

    tensor: str
    shape: tuple[int, ...]
    third: int | None = None
    scale: str | None = None


@dataclass(frozen=True)
class Part:
    """One network: its configuration and where that is, and where its weights are."""

    name: str
    config: Config
    settings: Path
    weights: Path
    tensors: Mapping[str, Entry]  # those of the file's header that belong to it
    modern: Callable[[str], str]  # the name that transformers or diffusers use for a tensor

    def __post_init__(self) -> None:
        if strange := sorted({self.tensors[place.tensor].dtype for place in self.places.values()} - _FLOATS):
            hint = "quantised weights cannot be exported: get the model in fp8, fp16, bf16 or fp32"
            message = f"{self.weights} holds {', '.join(strange)} weights"
            raise UnsupportedModelError(message, path=self.weights, hint=hint)

    @cached_property
    def places(self) -> Mapping[str, Place]:
        """Where each weight lies, by today's name. CheckpointError where two tensors are the same weight."""
        places: dict[str, Place] = {}
        scales = {self._scale(stored) for stored in self.tensors}
        for stored in self.tensors:
            for name, place in () if stored in scales or _BESIDE.fullmatch(stored) else self._places(stored):
                if name in places:
                    message = f"{self.weights}: {places[name].tensor} and {stored} are the same weight"
                    raise CheckpointError(message, path=self.weights)
                places[name] = place
        return places

    def check(self, expected: Mapping[str, Shape]) -> None:
        """CheckpointError where a weight is missing, is one too many, or has another shape than these."""
        missing, unexpected = sorted(expected.keys() - self.places.keys()), sorted(self.places.keys() - expected.keys())
        if missing or unexpected:
            what = f"{counted('missing', missing)}, {counted('unexpected', unexpected)}"
            what += f"; this looks like {guess}" if (guess := describe_keys(self.tensors)) else ""
            raise CheckpointError(f"{self.weights} does not hold the {self.name}: {what}", path=self.weights)
        for name, shape in expected.items():
            place = self.places[name]
            if _flat(place.shape) != _flat(shape):
                message = f"{place.tensor} has the shape {list(place.shape)}, the configuration asks for {list(shape)}"
                raise CheckpointError(f"{self.weights}: {message}", path=self.weights)

    def _places(self, stored: str) -> Iterator[tuple[str, Place]]:
        """What the stored tensor holds: a weight, or those of query, key and value."""
        shape, modern, scale = self.tensors[stored].shape, self.modern(stored), self._scale(stored)
        if scale and math.prod(self.tensors[scale].shape) not in (1, *shape[:1]):
            message = f"{self.weights}: {scale} has the shape {list(self.tensors[scale].shape)}"
            hint = "one factor for a tensor, or one for each of its rows, is supported"
            raise UnsupportedModelError(message, path=self.weights, hint=hint)
        head, packed, kind = modern.rpartition("in_proj_")
        if packed and shape and shape[0] % 3 == 0:
            third = shape[0] // 3, *shape[1:]
            yield from ((f"{head}{qkv}_proj.{kind}", Place(stored, third, i, scale)) for i, qkv in enumerate("qkv"))
        else:
            yield modern, Place(stored, shape, None, scale)

    def _scale(self, stored: str) -> str | None:
        """The tensor that holds this one's factors, in either of two spellings."""
        names = f"{stored}_scale", stored.removesuffix("weight") + "scale_weight"
        return next((name for name in names if name in self.tensors and name != stored), None)


@dataclass(frozen=True)
class Files:
    """The files that a checkpoint was found in: by name, and what each was like before it was looked at."""

    paths: Mapping[str, Path]
    states: Mapping[Path, State]

    @classmethod
    def of(cls, root: Path, paths: Iterable[Path]) -> Files:
        """Those below `root` are named from there; what lies elsewhere is another VAE's."""
        states = {path: _state(path) for path in paths}
        below = {path: root in path.parents for path in states}
        names = {
            path: path.relative_to(root).as_posix() if below[path] else f"another vae/{path.name}" for path in states
        }
        return cls({root.name if path == root else name: path for path, name in names.items()}, states)

    @cached_property
    def sha256(self) -> Mapping[str, str]:
        """Of each file. It takes seconds: whatever can be refused without it is refused before."""
        hashes = {}
        for name, path in self.paths.items():
            with path.open("rb", buffering=0) as file:
                hashes[name] = files.sha256_of(file)
        return hashes

    def with_more(self, paths: Mapping[str, Path]) -> Files:
        """These files and others, by name."""
        states = {path: _state(path) for path in paths.values()}
        return Files({**self.paths, **paths}, {**self.states, **states})

    def check_unchanged(self) -> None:
        """ExportError where a file is not the one that was looked at."""
        for path, state in self.states.items():
            if not path.exists() or _state(path) != state:
                raise ExportError(f"{path} changed while it was being read", path=path, hint="export again")


def _flat(shape: Shape) -> Shape:
    """The shape of a matrix for what is one: a linear layer may be stored as a convolution that sees one pixel."""
    return shape[:2] if set(shape[2:]) <= {1} else shape


def counted(what: str, names: list[str]) -> str:
    """Their number, and the first five."""
    return f"{len(names)} {what}" + (f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else "")


def read_json(path: Path) -> Config:
    try:
        tree = json.loads(read(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})", path=path) from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds no JSON object", path=path)
    return tree


def read(path: Path) -> bytes:
    if not path.exists():
        raise CheckpointError(f"{path} is missing", path=path, hint="is this the folder of a Stable Diffusion model?")
    if _check_readable(path).st_size > LARGEST_JSON:
        raise CheckpointError(f"{path} is larger than {LARGEST_JSON} bytes", path=path)
    return path.read_bytes()


def read_header(path: Path) -> Header:
    """What the file holds. CheckpointError where the file is not whole, UnsafeFileError for a pickle."""
    size = _check_readable(path).st_size
    try:
        with path.open("rb") as file:
            return tensorfile.read_header(file, size)
    except CheckpointError as error:
        raise error.about(path) from error


def _check_readable(path: Path) -> os.stat_result:
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


def _state(path: Path) -> State:
    """What changes when a file is written or replaced."""
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
