"""A step engine that computes nothing: a call takes `fixed + per_row * rows` seconds of a clock of its own.

It stands in for a GPU where the scheduler alone is looked at; no speed of anything follows from it. Knows no requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipskip.backends import Array
from clipskip.engines.manifest import Artefact, Dim, Port, Role
from clipskip.engines.shapes import SLOTS

B, N, T, H, W = (Dim(name) for name in "BNThw")
SMALLEST = 4  # latents of the smallest picture, by whose rows time is counted
INPUTS = (
    Port("state", "float32", (B, SLOTS, 4, H, W)), Port("rows", "int64", (N,)), Port("mix", "float32", (B, N)),
    Port("reference", "float32", (B, N)), Port("c_in", "float32", (B,)), Port("timestep", "float32", (B,)),
    Port("update", "float32", (B, SLOTS, SLOTS + 2)), Port("noise", "float32", (B, 4, H, W)),
    Port("context", "float32", (N, T, 1)),
)  # fmt: skip

ARTEFACT = Artefact(Role("step"), "onnx", "fp32", INPUTS, (), {})


@dataclass
class Double:
    """The engine, and the cache that a driver takes it from; `clock` in seconds."""

    fixed: float
    per_row: float
    clock: float = 0.0
    lora_engines: int = 1
    artefact: Artefact = ARTEFACT

    def seconds(self, rows: int, latents: int) -> float:
        """What a call of so many rows takes, each of a picture of `latents` latents."""
        return self.fixed + self.per_row * rows * latents / SMALLEST

    @contextmanager
    def use(self, role: Role, mix: object) -> Iterator[Double]:
        yield self

    def loop(self, feeds: Mapping[str, Array], feedback: object) -> Loop:
        return Loop(self, feeds["state"].shape, len(feeds["rows"]))


@dataclass
class Loop:
    """One set of shapes."""

    engine: Double
    shape: tuple[int, ...]
    rows: int

    def write(self, name: str, slot: int, array: Array) -> None: ...

    def run(self, feeds: object) -> None:
        self.engine.clock += self.engine.seconds(self.rows, self.shape[3] * self.shape[4])

    def read(self, name: str, slot: int | None = None) -> Any:
        return np.zeros(self.shape if slot is None else self.shape[1:], np.float32)

    def close(self) -> None: ...
