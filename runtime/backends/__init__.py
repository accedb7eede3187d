"""The seam between the runtime, which plans, and the libraries that compute.

A backend opens a verified artefact and gives back an engine. Knows nothing of prompts, samplers or pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from clipskip.engines.manifest import Artefact

Array = npt.NDArray[Any]


class Loop(Protocol):
    """An engine bound to buffers of its own for many runs at fixed shapes; outputs feed back into inputs."""

    def run(self, feeds: Mapping[str, Array]) -> None:
        """Rewrite the named inputs (the others keep their values) and run once, without waiting for the device."""

    def read(self, name: str) -> Array:
        """A host copy of the feedback input called `name` as the last run left it; waits for the device."""

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
    batch_pixels: int  # images share one call of the network up to so many pixels in all
    few_shapes: bool  # whether a text engine compiles kernels for every number of rows

    def open(self, artefact: Artefact, path: Path) -> Engine:
        """Open the artefact whose verified main file is at `path`."""

    def describe(self) -> dict[str, str]:
        """Library versions and device, for results and reports."""
