"""A backend that notes what the step engine would be fed: tests look at the seam, not into the planner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clipskip.backends import Array, Engine, Loop
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.engines.manifest import Artefact, Role

Feeds = dict[str, Array]


class Recording:
    """ONNX Runtime, except that no step runs: `calls` has all its feeds, call by call, and the state stays noise."""

    name, target, precision, compiles_per_shape, loops = "onnxruntime", "onnx", "fp32", False, 8
    variants, proof = ("cpu", ""), None

    def __init__(self) -> None:
        self.calls: list[Feeds] = []
        self._inner = OnnxRuntime()
        self.batch_pixels = self._inner.batch_pixels

    def open(self, artefact: Artefact, path: Path) -> Engine:
        return StillStep(artefact, self.calls) if artefact.role == Role("step") else self._inner.open(artefact, path)

    def describe(self) -> dict[str, str]:
        return self._inner.describe()


class StillStep:
    """A step engine that leaves the state as it is."""

    nbytes = 0

    def __init__(self, artefact: Artefact, calls: list[Feeds]) -> None:
        self.artefact, self._calls = artefact, calls

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        self._calls.append({name: array.copy() for name, array in feeds.items()})
        return {"next_state": feeds["state"]}

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> Loop:
        return _StillLoop(self, feeds)

    def close(self) -> None:
        """Nothing is open."""


class _StillLoop:
    def __init__(self, engine: StillStep, feeds: Mapping[str, Array]) -> None:
        self._engine, self._feeds = engine, {name: array.copy() for name, array in feeds.items()}

    def write(self, name: str, slot: int, array: Array) -> None:
        self._feeds[name][slot] = array

    def run(self, feeds: Mapping[str, Array]) -> None:
        self._feeds.update({name: array.copy() for name, array in feeds.items()})
        self._engine.run(self._feeds)

    def read(self, name: str, slot: int | None = None) -> Array:
        return np.array(self._feeds[name] if slot is None else self._feeds[name][slot])

    def close(self) -> None:
        self._feeds = {}
