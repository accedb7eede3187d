"""What a store takes, stage by stage: `clipskip bench STORE`. Compares with an earlier report, not with peers.

Engines are timed turn by turn, then the first picture of a process, then whole pictures, within a time that is given.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np

import clipskip
from clipskip.backends import Array, Backend, backend_named
from clipskip.bench import baseline, machine
from clipskip.bench.measure import OWN_PATH, Contenders, Seconds, Turns, noise, summary
from clipskip.engine_cache import EngineCache
from clipskip.engines.manifest import DECODE, STEP, Artefact, Role
from clipskip.engines.shapes import LATENT, TOKENS
from clipskip.engines.store import Store
from clipskip.errors import RequestError

PROMPT, NEGATIVE = "a large red circle on a green background", "blue"
PICTURES = f"""{OWN_PATH}
import clipskip
store, backend, size, steps, skips = sys.argv[1:]
with clipskip.open(store, backend=backend) as pipe:
    for skip in skips.split(","):
        pipe({PROMPT!r}, clip_skip=int(skip), width=int(size), height=int(size), steps=int(steps), seed=1)
        print("clip skip", skip)
        {machine.SAY_MEMORY}
"""
PAUSE = 0.02  # seconds: the threads of ONNX Runtime and OpenMP spin for less


@dataclass(frozen=True)
class Options:
    """What is measured: guided pictures of `size` pixels a side, medians of `rounds`, at least 5, within `minutes`.

    `size` 0: the model's own. `batches`: images in one call of the network; (): what pictures share on this backend.
    """

    target: str = "onnxruntime"
    batches: Sequence[int] = ()
    size: int = 0
    steps: int = 20
    rounds: int = 5
    minutes: float = 10


@dataclass
class Bench:
    """One run: the store's engines on a backend, what was asked for, and until when (of time.monotonic)."""

    store: Store
    backend: Backend
    asked: Options
    until: float
    stages: dict[str, Seconds] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._engines = EngineCache(self.store, self.backend, 0)

    def artefact(self, role: Role) -> Artefact:
        """What the runtime would open for it. EngineMissing."""
        return self._engines.artefact(role)

    @property
    def roles(self) -> list[Role]:
        """The text encoder at every depth that there is, the step, the decoder: what a picture needs."""
        there = {each.role for each in self.store.manifest().artefacts if each.target == self.backend.target}
        return [*sorted(role for role in there if role.part == "text"), STEP, DECODE]

    def take(self, contenders: Contenders, warmups: int = 1, reserve: float = 0.0, seconds: float = 1.0) -> None:
        """Time these and keep the seconds; `reserve`: what must be left for later."""
        turns = Turns(self.asked.rounds, seconds, PAUSE, self.until - reserve)
        self.stages |= turns.take(contenders, warmups)

    def openings(self) -> None:
        """Opening each engine, whose bytes are proved before."""
        there = {f"open {role}": (each := self.artefact(role), self.store.verify(each)) for role in self.roles}
        self.take({name: partial(lambda *it: self.backend.open(*it).close(), *it) for name, it in there.items()})

    def engines(self) -> None:
        """One run of each: all depths together, the step with each number of images."""
        groups: list[dict[str, tuple[Role, int]]] = [
            {str(role): (role, 1) for role in self.roles if role.part == "text"},
            {baseline.row_of(images): (STEP, images) for images in self.asked.batches},
            {"decode": (DECODE, 1)},
        ]
        for group in groups:
            with ExitStack() as stack:
                artefacts = {role: self.artefact(role) for role, _ in group.values()}
                opened = {
                    role: stack.enter_context(closing(self.backend.open(each, self.store.verify(each))))
                    for role, each in artefacts.items()
                }
                runs = {
                    name: partial(opened[role].run, feeds(artefacts[role], self.asked.size, images))
                    for name, (role, images) in group.items()
                }
                self.take(runs, warmups=2)

    def first_pictures(self) -> dict[str, Any]:
        """Processes that make one picture of one step; the memory of one, and of one that has more and more depths."""
        root, size = self.store.root, self.asked.size
        command = [sys.executable, "-c", PICTURES, str(root), self.backend.name]
        kept = self.store.manifest().model.kept
        skips = [str(kept.index(role.layers) + 1) for role in reversed(self.roles[:-2])]
        said = ""

        def start(cold: bool) -> None:
            nonlocal said
            if cold:
                forget(root)
            said = child([*command, str(size), "1", skips[0]])

        name = "first picture of a process, 1 step"
        contenders = {f"{name}, files in memory": partial(start, False)}
        if hasattr(os, "posix_fadvise"):  # Linux
            contenders = {f"{name}, files on the disk": partial(start, True)} | contenders
        one_picture = self.asked.steps * min(self.stages["step"]) + min(self.stages["decode"])
        self.take(contenders, warmups=0, reserve=one_picture)
        smallest = max(64, self.artefact(STEP).axes["h"].minimum * LATENT)
        blocks = child([*command, str(smallest), "1", ",".join(skips)]).split("clip skip ")[1:]
        depths = {block.split()[0]: machine.memory(block) for block in blocks}
        return {"first_picture": machine.memory(said), "depths_open": list(depths.values())}

    def pictures(self) -> None:
        """Pictures of new prompts, and what a step costs outside the engine: from one to the next, less the run."""
        timed, numbers, host = Timed(self.backend), count(), Seconds()
        size, steps = self.asked.size, self.asked.steps
        locked = clipskip.Request(prompt=PROMPT, negative_prompt=NEGATIVE, seed=1, width=size, height=size, steps=steps)
        with clipskip.open(self.store.root, backend=cast(Backend, timed)) as pipe:

            def picture() -> None:
                request = locked.over({"prompt": f"{PROMPT} {next(numbers)}"})
                outside = [time.perf_counter() - timed.seconds for _ in pipe.steps(request)]
                host.extend(np.diff(outside[1:-1]).tolist())  # the first step binds buffers, the last decodes

            pipe(locked, steps=1)
            self.take({f"picture, {self.asked.steps} steps": picture}, warmups=0, seconds=10)
        self.stages["host, per step"] = host


def measure(
    path: str | Path, asked: Options, say: Callable[[str], None] = print, old: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The report, ready for JSON: medians in `stages`, and more. RequestError at once if `old` is of other things."""
    watch, bench = machine.Watch(), prepared(path, asked)
    model, asked = bench.store.manifest().model, bench.asked
    head: dict[str, Any] = {
        "bench": "store", "model": model.name, "version": clipskip.__version__, "target": asked.target,
        "size": asked.size, "steps": asked.steps, "batches": list(asked.batches), "rounds": asked.rounds,
    }  # fmt: skip
    if old:
        baseline.comparable(head, old)
    say("opening the engines")
    bench.openings()
    say("running them")
    bench.engines()
    say("first pictures of processes")
    memory = bench.first_pictures()
    say("whole pictures")
    bench.pictures()
    stages = {name: summary(seconds) for name, seconds in bench.stages.items()}
    seen = watch.report()
    per_second = {
        str(images): round(1000 * images / stages[baseline.row_of(images)]["median_ms"], 3) for images in asked.batches
    }
    return {
        **head, "layers": model.layers, "backend": bench.backend.describe(), "machine": machine.facts(), "load": seen,
        "doubts": {**{said: [] for said in machine.warnings(seen)}, **noise(stages, asked.rounds)},
        "stages": stages, "image_steps_per_second": per_second, "memory": memory, "disk": disk(bench),
    }  # fmt: skip


def prepared(path: str | Path, asked: Options) -> Bench:
    """What to measure, with the defaults that the store knows. RequestError for what its engines do not take."""
    store, backend = Store(path), backend_named(asked.target)
    size = asked.size or store.manifest().model.default_size
    bench = Bench(store, backend, asked, time.monotonic() + 57 * asked.minutes)  # the rest is for what comes last
    axes = bench.artefact(STEP).axes
    for name in ("h", "w"):
        if size % LATENT or not axes[name].minimum <= size // LATENT <= axes[name].maximum:
            sizes = f"{axes[name].minimum * LATENT} to {axes[name].maximum * LATENT}, in steps of {LATENT}"
            raise RequestError(f"the step engine takes sizes of {sizes}, not {size}", field="size")
    shared = min(axes["B"].maximum, max(1, backend.batch_pixels // size**2))
    batches = tuple(asked.batches) or tuple(2**power for power in range(min(3, shared.bit_length())))
    if 1 not in batches or min(batches) < 1 or max(batches) > axes["B"].maximum:
        message = f"the step engine takes 1 to {axes['B'].maximum} images, and 1 must be among them"
        raise RequestError(f"{message}: not {','.join(map(str, batches))}", field="batch")
    bench.asked = replace(asked, size=size, batches=batches, rounds=max(5, asked.rounds))
    return bench


def feeds(artefact: Artefact, size: int, images: int = 1) -> dict[str, Array]:
    """Inputs for guided images, two rows of text and of the U-Net each; over ten: indices become 0, always valid."""
    random, latent = np.random.default_rng(0), size // LATENT
    sizes = {"B": images, "N": 2 * images, "R": 2, "T": TOKENS, "E": 1, "h": latent, "w": latent}
    ports = artefact.inputs
    return {port.name: (random.standard_normal(port.sized(sizes)) / 10).astype(port.dtype) for port in ports}


def disk(bench: Bench) -> dict[str, int]:
    """Bytes of the files that the engines are opened from: all of them, those of one depth, and by part."""
    parts = {role: {file.path: file.size for file in bench.artefact(role).files} for role in bench.roles}
    deepest = max(role for role in bench.roles if role.part == "text")
    one = {**parts[deepest], **parts[STEP], **parts[DECODE]}
    everything = {path: size for files in parts.values() for path, size in files.items()}
    by_part = {str(role): sum(parts[role].values()) for role in (deepest, STEP, DECODE)}
    return {"all": sum(everything.values()), "one depth": sum(one.values()), **by_part}


def child(command: Sequence[str]) -> str:
    """What a process prints that must succeed. RequestError with its last words where it does not."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RequestError(f"a process that was measured failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout


def forget(root: Path) -> None:
    """Let the system drop a store's files from its memory."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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
