"""How long each stage takes, from an engine store: `python -m clipskip.bench.latency STORE`.

Prints a table for people and ends with one JSON line for machines. Compares nothing: see compare.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import clipskip
from clipskip.backends import Array, Backend, Engine, Loop
from clipskip.backends.select import backend_named
from clipskip.bench.measure import Seconds, interleaved, summary, table
from clipskip.engines.manifest import Artefact, Identity, Port, Role
from clipskip.engines.store import Store
from clipskip.engines.tensorrt_child import python

PROMPT = "a large red circle on a green background"
FIRST_PICTURE = "import sys, clipskip; clipskip.open(sys.argv[1], backend=sys.argv[2])(sys.argv[3], seed=1)"


def measure(path: str | Path, target: str = "onnxruntime", *, steps: int = 20, rounds: int = 5) -> dict[str, Any]:
    """All stages of one guided picture at the model's default size; figures are medians of `rounds`, at least 5."""
    store, backend, rounds = Store(path), backend_named(target), max(5, rounds)
    model = store.manifest().model.name  # a missing store is said here, not by the processes that are measured
    stages = {
        **_starting(path, target, rounds),
        **_engines(store, backend, rounds),
        **_pictures(path, backend, steps, rounds),
    }
    return {
        "bench": "latency",
        "model": model,
        "version": clipskip.__version__,
        "steps": steps,
        "cores": len(os.sched_getaffinity(0)),
        "backend": backend.describe(),
        "stages": {name: summary(seconds) for name, seconds in stages.items()},
    }


def _starting(path: str | Path, target: str, rounds: int) -> dict[str, Seconds]:
    command = [*python(FIRST_PICTURE), str(path), target, PROMPT]
    return interleaved({"first picture, from process start": lambda: subprocess.run(command, check=True)}, rounds)


def _engines(store: Store, backend: Backend, rounds: int) -> dict[str, Seconds]:
    """Opening and running each engine on its own: one picture, which is two rows of text and of the U-Net."""
    side = store.manifest().model.default_size // 8
    sizes = {"B": 1, "N": 2, "R": 2, "T": 77, "E": 1, "h": side, "w": side}
    taken: dict[str, Seconds] = {}
    for role in [*(Role("text", layers) for layers in range(13)), Role("step"), Role("decode")]:
        if store.manifest().find(Identity(role, backend.target, backend.precision)) is None:
            continue
        artefact = store.find(role, backend.target, backend.precision)
        taken |= _engine(artefact, backend, store.verify(artefact), sizes, rounds)
    return taken


def _engine(
    artefact: Artefact, backend: Backend, path: Path, sizes: Mapping[str, int], rounds: int
) -> dict[str, Seconds]:
    feeds = {port.name: _example(port, sizes) for port in artefact.inputs}
    opening = interleaved({f"open {artefact.role}": lambda: backend.open(artefact, path).close()}, rounds)
    engine = backend.open(artefact, path)
    try:
        return opening | interleaved({str(artefact.role): lambda: engine.run(feeds)}, 4 * rounds, warmups=3)
    finally:
        engine.close()


def _example(port: Port, sizes: Mapping[str, int]) -> Array:
    shape = [dimension if isinstance(dimension, int) else dimension.size(sizes) for dimension in port.shape]
    values = np.random.default_rng(0).standard_normal(shape) / 10  # indices become 0, which is always valid
    return values.astype(port.dtype)


def _pictures(path: str | Path, backend: Backend, steps: int, rounds: int) -> dict[str, Seconds]:
    """Whole pictures, and what a step costs outside the engine: the wait between two steps less the engine's time."""
    timed = Timed(backend)
    host: Seconds = []
    request = clipskip.Request(prompt=PROMPT, negative_prompt="blue", steps=steps, seed=1)
    with clipskip.open(path, backend=timed) as pipe:
        whole = interleaved({f"picture, {steps} steps": lambda: pipe(request)}, rounds)
        for _ in range(rounds):
            outside = [time.perf_counter() - timed.seconds for _ in pipe.steps(request)]
            host += np.diff(outside[1:-1]).tolist()  # the first step binds buffers, the last decodes
    return whole | {"host, per step": host}


class Timed:
    """A backend that adds up the seconds spent inside engines; honest where `Loop.run` waits, as on the CPU."""

    def __init__(self, inner: Backend) -> None:
        self.name, self.target, self.precision = inner.name, inner.target, inner.precision
        self.batch_pixels, self.few_shapes = inner.batch_pixels, inner.few_shapes
        self.seconds = 0.0
        self._inner = inner

    def open(self, artefact: Artefact, path: Path) -> Engine:
        return _TimedEngine(self, self._inner.open(artefact, path))

    def describe(self) -> dict[str, str]:
        return self._inner.describe()


class _TimedEngine:
    def __init__(self, timed: Timed, inner: Engine) -> None:
        self.artefact, self._timed, self._inner = inner.artefact, timed, inner
        self.nbytes, self.run, self.close = inner.nbytes, inner.run, inner.close

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> Loop:
        return _TimedLoop(self._timed, self._inner.loop(feeds, feedback))


class _TimedLoop:
    def __init__(self, timed: Timed, inner: Loop) -> None:
        self._timed, self._inner = timed, inner
        self.read, self.close = inner.read, inner.close

    def run(self, feeds: Mapping[str, Array]) -> None:
        started = time.perf_counter()
        self._inner.run(feeds)
        self._timed.seconds += time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="clipskip.bench.latency", description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5, help="at least 5")
    parser.add_argument("--json", action="store_true", help="only the JSON line on stdout")
    args = parser.parse_args(arguments)
    report = measure(args.store, args.target, steps=args.steps, rounds=args.rounds)
    print(table(report["stages"]), file=sys.stderr if args.json else sys.stdout)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
