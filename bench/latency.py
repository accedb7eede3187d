"""How long each stage takes, from an engine store: `python -m clipskip.bench.latency STORE`.

Prints a table for people and ends with one JSON line for machines. Compares nothing: see compare.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

import clipskip
from clipskip.backends import Array, Backend, backend_named
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.bench.measure import OWN_PATH, Seconds, interleaved, summary, table
from clipskip.engine_cache import EngineCache
from clipskip.engines.manifest import ENCODE, Artefact
from clipskip.engines.store import Store

PROMPT = "a large red circle on a green background"
FIRST_PICTURE = f"{OWN_PATH}import clipskip; clipskip.open(sys.argv[1], backend=sys.argv[2])(sys.argv[3], seed=1)"


def measure(path: str | Path, target: str = "onnxruntime", *, steps: int = 20, rounds: int = 5) -> dict[str, Any]:
    """All stages of one guided picture at the model's default size; figures are medians of `rounds`, at least 5."""
    store, backend, rounds = Store(path), backend_named(target), max(5, rounds)
    model = store.manifest().model  # a missing store is said here, not by the processes that are measured
    command = [sys.executable, "-c", FIRST_PICTURE, str(path), target, PROMPT]
    start = {"first picture, from process start": lambda: subprocess.run(command, check=True)}
    stages = interleaved(start, rounds)
    latent = model.default_size // 8
    sizes = {"B": 1, "N": 2, "R": 2, "T": 77, "E": 1, "h": latent, "w": latent}
    engines = EngineCache(store, backend, 0)
    kind = backend.target, backend.precision
    roles = {artefact.role for artefact in store.manifest().artefacts if artefact.identity[1:3] == kind}
    for role in sorted(roles - {ENCODE}):  # which no request here uses
        artefact = engines.artefact(role)
        stages |= _engine(artefact, backend, store.verify(artefact), sizes, rounds)
    stages |= _pictures(path, backend, steps, rounds)
    return {
        "bench": "latency",
        "model": model.name,
        "version": clipskip.__version__,
        "steps": steps,
        "cores": OnnxRuntime().threads,
        "backend": backend.describe(),
        "stages": {name: summary(seconds) for name, seconds in stages.items()},
    }


def _engine(
    artefact: Artefact, backend: Backend, path: Path, sizes: Mapping[str, int], rounds: int
) -> dict[str, Seconds]:
    """Opening and running one engine on its own: one picture, which is two rows of text and of the U-Net."""
    random = np.random.default_rng(0)  # over ten: indices become 0, which is always valid
    feeds = {port.name: (random.standard_normal(port.sized(sizes)) / 10).astype(port.dtype) for port in artefact.inputs}
    opening = interleaved({f"open {artefact.role}": lambda: backend.open(artefact, path).close()}, rounds)
    engine = backend.open(artefact, path)
    try:
        return opening | interleaved({str(artefact.role): lambda: engine.run(feeds)}, 4 * rounds, warmups=3)
    finally:
        engine.close()


def _pictures(path: str | Path, backend: Backend, steps: int, rounds: int) -> dict[str, Seconds]:
    """Whole pictures, and what a step costs outside the engine: the wait between two steps less the engine's time."""
    timed = Timed(backend)
    host: Seconds = []
    request = clipskip.Request(prompt=PROMPT, negative_prompt="blue", steps=steps, seed=1)
    with clipskip.open(path, backend=cast(Backend, timed)) as pipe:
        whole = interleaved({f"picture, {steps} steps": lambda: pipe(request)}, rounds)
        for _ in range(rounds):
            outside = [time.perf_counter() - timed.seconds for _ in pipe.steps(request)]
            host += np.diff(outside[1:-1]).tolist()  # the first step binds buffers, the last decodes
    return whole | {"host, per step": host}


class Timed:
    """A backend, or an engine or loop of it, that adds up the seconds in `run`; honest where that waits: on the CPU."""

    def __init__(self, inner: Any, outer: Timed | None = None) -> None:
        self.seconds = 0.0
        self._inner, self._outer = inner, outer or self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self, artefact: Artefact, path: Path) -> Timed:
        return Timed(self._inner.open(artefact, path), self._outer)

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> Timed:
        return Timed(self._inner.loop(feeds, feedback), self._outer)

    def run(self, feeds: Mapping[str, Array]) -> Any:
        started = time.perf_counter()
        outputs = self._inner.run(feeds)
        self._outer.seconds += time.perf_counter() - started
        return outputs


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
