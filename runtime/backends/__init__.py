"""The seam between the runtime, which plans, and the libraries that compute.

A backend opens a verified artefact and gives back an engine. Knows nothing of prompts, samplers or pictures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from clipskip.engines.manifest import Artefact
from clipskip.engines.variants import Changed
from clipskip.errors import RequestError
from clipskip.fields import did_you_mean, shown

from .providers import BY_TARGET

Array = npt.NDArray[Any]
OPENVINO = {"openvino": (), "openvino-bf16": ("step",)}  # which parts compute in bfloat16
NAMES = (*BY_TARGET, *OPENVINO, "tensorrt", "tensorrt-rtx")  # of the backends, as the command line says them


class Loop(Protocol):
    """An engine bound to buffers of its own for many runs at fixed shapes; outputs feed back into inputs."""

    def run(self, feeds: Mapping[str, Array]) -> None:
        """Rewrite the named inputs (the others keep their values) and run once, without waiting for the device."""

    def write(self, name: str, slot: int, array: Array) -> None:
        """Write one slot (an index of the first axis) of one input, before the next run."""

    def read(self, name: str, slot: int | None = None) -> Array:
        """A host copy of the feedback input, or of one slot of it, as the last run left it; waits for the device."""

    def close(self) -> None:
        """Give the buffers back. May be called twice."""


class Engine(Protocol):
    """One opened artefact. Safe to call from several threads at once."""

    artefact: Artefact
    nbytes: int  # memory that it costs to keep this open

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name, on the host, for all inputs by name."""

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> Loop:
        """Bind all inputs at the shapes of `feeds`; `feedback` maps an output to the input that it becomes."""

    def close(self) -> None:
        """Free what the library holds. May be called twice; runs in flight end first."""


class Backend(Protocol):
    """A library and device that run artefacts of one target."""

    name: str  # what the command line calls it: "onnxruntime", "tensorrt-rtx", ...
    target: str  # the target whose artefacts it opens: "onnx" for ONNX Runtime
    precision: str  # the precision it prefers: "fp32" on the CPU, "fp16" on NVIDIA GPUs
    variants: tuple[str, ...]  # the forms that it prefers, best first; the last is "", the exported graph itself
    batch_pixels: int  # images share one call of the network up to so many pixels in all
    compiles_per_shape: bool  # whether an engine compiles, or captures a graph, for every shape that it meets
    loops: int  # how many loops of one engine may be open at once
    proof: str | None  # GPU and library, where a form is compared with the exported graph before it is first used there

    def open(self, artefact: Artefact, path: Path) -> Engine:
        """Open the artefact whose verified main file is at `path`."""

    def describe(self) -> dict[str, str]:
        """Library versions and device, for results and reports."""


@runtime_checkable
class Replacing(Protocol):
    """What a backend does beside, that can open an engine with other weights than those that are stored."""

    def open_changed(self, artefact: Artefact, path: Path, changed: Mapping[str, Changed]) -> Engine:
        """Open the artefact; the initializers of these names have other values."""


def cores() -> int:
    """As many as this process may use."""
    may_ask = hasattr(os, "sched_getaffinity")  # not so on Windows
    return len(os.sched_getaffinity(0)) if may_ask else os.cpu_count() or 1


def backend_named(name: object, device: int = 0) -> Backend:
    """The backend called `name` on the device of that index, with default settings; loads no library but its own.

    RequestError for another name, BackendUnavailable when it cannot be used here.
    """
    if not isinstance(name, str):
        message = f"backend must be one of {', '.join(NAMES)}, or a backend object, not {shown(name)}"
        raise RequestError(message, field="backend")
    if name in BY_TARGET:
        from .onnxruntime import OnnxRuntime

        return OnnxRuntime([BY_TARGET[name].name], device=device)
    if name in OPENVINO:
        from .openvino import OpenVino

        if device:
            raise RequestError(f"{name} computes on the CPU, which has no number {device}", field="device")
        return OpenVino(OPENVINO[name])
    if name in NAMES:
        from .tensorrt import tensorrt_backend

        return tensorrt_backend(name, device=device)
    hint = did_you_mean(name, {each: each for each in NAMES}, 0.6)
    raise RequestError(f"target must be one of {', '.join(NAMES)}; not {shown(name)}", field="target", hint=hint)
