"""Which NVIDIA GPUs this machine has, and which of them a library or an engine fits. Opens no engine."""

from __future__ import annotations

import importlib
import mmap
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipskip.engines import files, hints
from clipskip.engines.errors import BackendUnavailable

# How CUDA's compiler bundles one kernel's code for several GPUs: mark, version, size of this header and of the rest;
# then for each, with a header of its own: kind, version, size of the header and of the code, and the architecture.
BUNDLE, ENTRY, MARK, TEXT = struct.Struct("<IHHQ"), struct.Struct("<HHIQ12xI"), b"\x50\xed\x55\xba", 1


@dataclass(frozen=True)
class Device:
    """Where engines run: the CPU, or one of the GPUs in CUDA's numbering. As people write it "cpu", "cuda:1"."""

    kind: str = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


@dataclass(frozen=True)
class Gpu:
    """One device, as CUDA describes it."""

    name: str
    compute_capability: str  # "8.9"
    memory: int  # bytes
    uuid: str
    cuda: str  # the newest CUDA version that the driver serves: "13.0"

    @property
    def identity(self) -> str:
        """What timings and engines tuned on this device are good for."""
        return f"{self.name}, compute capability {self.compute_capability}, CUDA {self.cuda.partition('.')[0]}"


def onnxruntime() -> Any:
    """The module onnxruntime, kept from reporting to its maker: it asks this variable once, when it is imported.

    ImportError where it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module("onnxruntime")


def cuda_runtime() -> Any:
    """The module cuda.bindings.runtime; BackendUnavailable when it is not installed."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        message = f"the package cuda-bindings cannot be loaded ({error})"
        raise files.shortage(error) or BackendUnavailable(message, hint=hints.install("cuda-bindings")) from error


def version_text(version: int) -> str:
    """CUDA's number for a version (13050) as people write it ("13.5")."""
    return f"{version // 1000}.{version % 1000 // 10}"


def check_driver(runtime: Any) -> int:
    """The number of GPUs, at least one; BackendUnavailable says whether driver, driver version or GPU is missing."""
    errors = runtime.cudaError_t
    status, count = runtime.cudaGetDeviceCount()
    _, driver = runtime.cudaDriverGetVersion()
    _, needed = runtime.cudaRuntimeGetVersion()
    if status == errors.cudaErrorInsufficientDriver and not driver:
        raise BackendUnavailable("no NVIDIA driver on this machine", hint="use --target onnxruntime, or install one")
    if status == errors.cudaErrorInsufficientDriver:
        versions = f"it serves CUDA {version_text(driver)}, CUDA {version_text(needed)} is needed"
        raise BackendUnavailable(f"NVIDIA driver too old: {versions}", hint="update it")
    if status != errors.cudaSuccess or not count:
        raise BackendUnavailable(f"no usable NVIDIA GPU ({errors(status).name})", hint="use --target onnxruntime")
    return int(count)


def gpus(runtime: Any) -> list[Gpu]:
    """All devices, in CUDA's order. BackendUnavailable where there is none."""
    return [describe(runtime, index) for index in range(check_driver(runtime))]


def describe(runtime: Any, index: int) -> Gpu:
    """The GPU of this number. BackendUnavailable where there is none, naming those that there are."""
    count = check_driver(runtime)
    if not 0 <= index < count:
        there = ", ".join(map(str, range(count)))
        raise BackendUnavailable(f"there is no GPU {index} on this machine, only {there}", field="device")
    status, facts = runtime.cudaGetDeviceProperties(index)
    if status != runtime.cudaError_t.cudaSuccess:
        raise BackendUnavailable(f"GPU {index} does not answer ({runtime.cudaError_t(status).name})")
    _, driver = runtime.cudaDriverGetVersion()
    return Gpu(
        name=facts.name.decode(errors="replace").rstrip("\0"),
        compute_capability=f"{facts.major}.{facts.minor}",
        memory=int(facts.totalGlobalMem),
        uuid=bytes(facts.uuid.bytes).hex(),
        cuda=version_text(driver),
    )


def code_in(library: Path) -> list[str]:
    """The compute capabilities that a library's kernels are for: "8.6"; "9.0+" is text that the driver compiles itself.

    Empty for a library without kernels, or that holds them in a way that is not known here.
    """
    found, place = set[tuple[int, str]](), 0
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while 0 <= (place := data.find(MARK, place)) <= len(data) - BUNDLE.size:
            _, version, header, size = BUNDLE.unpack_from(data, place)
            entry, end = place + header, place + header + size
            place += len(MARK)
            while (version, header) == (1, BUNDLE.size) and entry + ENTRY.size <= end <= len(data):
                kind, _, own, code, architecture = ENTRY.unpack_from(data, entry)
                found.add((architecture, "+" if kind == TEXT else ""))
                entry += max(own + code, 1)
    return [f"{architecture // 10}.{architecture % 10}{later}" for architecture, later in sorted(found)]


def code_of_onnxruntime() -> list[str]:
    """The same of the CUDA provider of the installed ONNX Runtime, which is not imported; empty where there is none."""
    package = find_spec("onnxruntime")
    folders = package.submodule_search_locations if package else None
    libraries = [path for each in folders or () for path in Path(each, "capi").glob("*onnxruntime_providers_cuda.*")]
    return code_in(libraries[0]) if libraries else []


def has_code(code: Iterable[str], capability: str) -> bool:
    """Whether some of the code runs there: on its own generation from its own number on, text on any later GPU."""
    major, _, minor = capability.partition(".")
    numbers = [(*map(int, entry.rstrip("+").split(".")), entry.endswith("+")) for entry in code]
    return any((a, b) <= (int(major), int(minor)) and (text or a == int(major)) for a, b, text in numbers)
