"""All ways to make pictures on a GPU, side by side in one run: `python -m clipskip.bench.gpu STORE`.

Graph forms, plain and as captured CUDA graphs, and of the same checkpoint PyTorch's eager networks, channels_last and
that captured, torch.compile with CUDA graphs, and diffusers' pipeline. Each stage is timed turn by turn; what cannot
run is left out, with the reason. Prints a table for people and ends with one JSON line for machines. With
`--target onnxruntime` all of it runs on the CPU, which is how it is tested.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import clipskip
from clipskip.backends import NAMES
from clipskip.backends.device import Settings
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.backends.providers import BY_TARGET
from clipskip.backends.tensorrt import tensorrt_backend
from clipskip.bench.measure import interleaved, summary
from clipskip.bench.store import NEGATIVE, PROMPT, feeds
from clipskip.engines import gpu
from clipskip.engines import report as reports
from clipskip.engines.manifest import Identity, Role
from clipskip.engines.store import Store
from clipskip.errors import ClipskipError

STEPS = 20  # of a picture, and in a row where a step is timed: nobody waits between two
CAPTURED = ("onnxruntime-cuda", "tensorrt-rtx", "tensorrt")  # targets whose runs we can replay as CUDA graphs
CLOCKS = ("driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "temperature.gpu")
STATM = Path("/proc/self/statm")


class Stage(NamedTuple):
    """What is timed: "text-12", "step", "decode" or "picture", for how many guided images of how many pixels a side."""

    part: str
    images: int
    size: int

    def __str__(self) -> str:
        return f"{self.part}, {self.images}" if self.part == "step" else self.part


class Work(NamedTuple):
    """A stage that is ready: `enqueue` starts it once and may return before it is done, `wait` waits for all of it."""

    enqueue: Callable[[], object]
    wait: Callable[[], object]
    close: Callable[[], object]


class Contender(Protocol):
    """One way to compute, with inputs of its own. `facts`: its libraries and device."""

    name: str
    facts: Mapping[str, str]

    def open(self, stage: Stage) -> Work | None:
        """The stage, ready to run; None where it has none of its own. Any error means that it cannot do that here."""


class Engines:
    """A store's engines of one form on one backend; a picture takes the exported graphs where it has no form."""

    def __init__(self, name: str, store: Path, backend: Any, variant: str) -> None:
        self.name, self.facts, self._backend = name, backend.describe(), backend
        self._path, self._store, self._variant = store, Store(store), variant
        backend.variants = (variant, "") if variant else ("",)

    def open(self, stage: Stage) -> Work | None:
        backend = self._backend
        if stage.part == "picture":
            pipe = clipskip.open(self._path, backend=backend)
            settings: dict[str, Any] = {"width": stage.size, "height": stage.size, "steps": STEPS, "seed": 1}
            request = clipskip.Request(prompt=PROMPT, negative_prompt=NEGATIVE, **settings)
            return Work(lambda: pipe(request), nothing, pipe.close)
        identity = Identity(Role.parse(stage.part), backend.target, backend.precision, self._variant)
        if (artefact := self._store.manifest().find(identity)) is None:
            return None
        engine = backend.open(artefact, self._store.verify(artefact))
        inputs = feeds(artefact, stage.size, stage.images)
        if stage.part != "step":
            return Work(lambda: engine.run(inputs), nothing, engine.close)
        loop = engine.loop(inputs, {"next_state": "state"})
        change = {name: inputs[name] for name in ("c_in", "timestep", "update")}
        return Work(lambda: loop.run(change), lambda: loop.read("state", 0), lambda: (loop.close(), engine.close()))


def nothing(*_: object) -> None:
    """The wait for what is done when it returns."""


def engines(store: Path, target: str) -> list[Contender]:
    """Every form that the store has for the target, plain and captured where it can be. BackendUnavailable."""
    provider = BY_TARGET.get(target)
    made: list[Contender] = []
    for graphs in (False, True) if target in CAPTURED else (False,):
        make: Callable[[], Any] = partial(tensorrt_backend, target, Settings(graphs=graphs))
        if provider is not None:
            make = partial(OnnxRuntime, [provider.name], graphs=graphs)
        there, kind = Store(store).manifest().artefacts, (make().target, make().precision)
        for variant in sorted({graph.variant for graph in there if (graph.target, graph.precision) == kind}):
            name = f"{variant or 'exported'}, {'captured' if graphs else 'plain'}"
            made.append(Engines(name, store, make(), variant))
    return made


def measure(
    contenders: Sequence[Contender], stages: Sequence[Stage], rounds: int, say: Callable[[str], object] = nothing
) -> dict[str, Any]:
    """Every stage by every contender, medians of at least 5 rounds; of the first step also host, kernels and memory.

    `say` is told each stage's medians when it is done: what is killed later was not in vain.
    """
    rounds = max(5, rounds)
    report: dict[str, Any] = {"stages": {}, "host": {}, "kernels": {}, "memory": {}, "left_out": {}}
    for stage in stages:
        works, memory = opened(contenders, stage, report["left_out"])
        repeats = STEPS if stage.part == "step" else 1
        try:
            taken = interleaved({name: partial(burst, work, repeats) for name, work in works.items()}, rounds)
            rows = {name: summary([turn / repeats for turn in turns]) for name, turns in taken.items()}
            report["stages"][str(stage)] = rows
            say(f"{stage}: " + ", ".join(f"{name} {row['median_ms']:.3f} ms" for name, row in rows.items()))
            if stage.part == "step" and not report["host"]:
                report["memory"] = memory
                report["host"] = {name: summary(host(work, rounds)) for name, work in works.items()}
                report["kernels"] = {name: kernels(work) for name, work in works.items()}
        finally:
            for work in works.values():
                work.close()
    return report


def opened(
    contenders: Sequence[Contender], stage: Stage, left_out: dict[str, str]
) -> tuple[dict[str, Work], dict[str, int]]:
    """Those that can do the stage, each run once, and the bytes that this took; why the others cannot."""
    works: dict[str, Work] = {}
    memory: dict[str, int] = {}
    for contender in contenders:
        before = used()
        try:
            if (work := contender.open(stage)) is not None:
                burst(work, 1)
                works[contender.name], memory[contender.name] = work, used() - before
        except Exception as error:  # of whichever library it is
            left_out[f"{stage}: {contender.name}"] = reason(error)
    return works, memory


def reason(error: Exception) -> str:
    """Why something is left out, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def burst(work: Work, repeats: int) -> None:
    """Some in a row, then one wait."""
    for _ in range(repeats):
        work.enqueue()
    work.wait()


def host(work: Work, rounds: int) -> list[float]:
    """Seconds that the host is busy with one on an idle device: of many in a row a queue of the driver is full."""
    taken = []
    for _ in range(rounds):
        work.wait()
        began = time.perf_counter()
        work.enqueue()
        taken.append(time.perf_counter() - began)
    work.wait()
    return taken


def kernels(work: Work) -> int | None:
    """Kernels that one launches, as CUPTI counts them for torch.profiler; None without torch and a GPU."""
    with suppress(ImportError):
        import torch
        from torch.profiler import ProfilerActivity, profile

        if torch.cuda.is_available():
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                burst(work, STEPS)
            names = [event.name for event in seen.events() if event.device_type.name == "CUDA"]
            return round(sum(not name.startswith(("Memcpy", "Memset")) for name in names) / STEPS)
    return None


def used() -> int:
    """Bytes in use on the first GPU; without one, of this process."""
    with suppress(ClipskipError):
        runtime = gpu.cuda_runtime()
        gpu.check_driver(runtime)
        _, free, total = runtime.cudaMemGetInfo()
        return int(total - free)
    return int(STATM.read_text().split()[1]) * 4096 if STATM.exists() else 0


def clocks() -> dict[str, str]:
    """What nvidia-smi says of the first GPU now."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    return dict(zip(CLOCKS, (entry.strip() for entry in done.stdout.split(",")), strict=False))


def ratios(stages: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """By stage the fastest of torch over the fastest of ours; by contender a picture over its steps and its decode."""
    medians = {stage: {name: row["median_ms"] for name, row in rows.items()} for stage, rows in stages.items()}
    ahead, picture = {}, {}
    for stage, rows in medians.items():
        sides = [[rows[name] for name in rows if name.startswith("torch") is torch] for torch in (True, False)]
        if all(sides):
            ahead[stage] = round(min(sides[0]) / min(sides[1]), 3)
    for name, whole in medians.get("picture", {}).items():
        with suppress(KeyError):
            picture[name] = round(whole / (STEPS * medians["step, 1"][name] + medians["decode"][name]), 3)
    return {"torch_over_clipskip": ahead, "picture_over_parts": picture}


def table(report: Mapping[str, Any]) -> str:
    """A row per stage, a column per contender, for people."""
    stages = {**report["stages"], "host, a step": report["host"]}
    names = list(dict.fromkeys(name for row in report["stages"].values() for name in row))
    cells = {stage: {name: f"{row[name]['median_ms']:.3f}" for name in row} for stage, row in stages.items()}
    cells["kernels, a step"] = {name: str(count) for name, count in report["kernels"].items() if count is not None}
    cells["memory, GB"] = {name: f"{size / 1e9:.2f}" for name, size in report["memory"].items()}
    rows = [(stage, *(row.get(name, "-") for name in names)) for stage, row in cells.items()]
    lines = [reports.table([("", *names), *rows])]
    for title in ("torch_over_clipskip", "picture_over_parts", "left_out"):
        lines += [f"{title.replace('_', ' ')}: {name}: {value}" for name, value in report[title].items()]
    return "\n".join([*lines, "(milliseconds)"])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="clipskip.bench.gpu", description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--target", default="onnxruntime-cuda", choices=NAMES)
    parser.add_argument("--checkpoint", type=Path, help="what the store was exported from, for PyTorch's side")
    parser.add_argument("--size", type=int, help="pixels a side (default: the model's own)")
    parser.add_argument("--batches", default="1,2,4,8", help="images in one step (default: 1,2,4,8)")
    parser.add_argument("--rounds", type=int, default=20, help="at least 5")
    text = "a column that is not wanted, such as 'torch compile', which takes minutes to tune itself"
    parser.add_argument("--leave-out", action="append", default=[], metavar="NAME", help=text)
    args = parser.parse_args(arguments)
    model, roles = Store(args.store).manifest().model, {graph.role for graph in Store(args.store).manifest().artefacts}
    size = args.size or model.default_size
    stages = [Stage(str(role), 1, size) for role in sorted(roles) if role.part == "text"]
    stages += [Stage("step", int(images), size) for images in args.batches.split(",")]
    stages += [Stage("decode", 1, size), Stage("picture", 1, size)]
    sides: dict[str, Callable[[], list[Contender]]] = {"clipskip": partial(engines, args.store, args.target)}
    if args.checkpoint:
        device = "cpu" if args.target == "onnxruntime" else "cuda"
        sides["torch"] = lambda: import_module("clipskip.bench.gpu_torch").contenders(args.checkpoint, device)
    contenders, left_out, cards = list[Contender](), dict[str, str](), list[dict[str, Any]]()
    for side, make in sides.items():
        try:
            contenders += [contender for contender in make() if contender.name not in args.leave_out]
        except Exception as error:  # a library that is not there, or not for GPUs, or does not take the checkpoint
            left_out[side] = reason(error)
    with suppress(ClipskipError):
        cards = [asdict(card) for card in gpu.gpus(gpu.cuda_runtime())]
    before = clocks()
    report = measure(contenders, stages, args.rounds, partial(print, file=sys.stderr, flush=True))
    report["left_out"] |= left_out
    report = {
        "bench": "gpu", "model": model.name, "size": size, "target": args.target, "version": clipskip.__version__,
        "gpus": cards, "clocks": {"before": before, "after": clocks()},
        "contenders": {contender.name: contender.facts for contender in contenders},
        **report, **ratios(report["stages"]),
    }  # fmt: skip
    print(table(report))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
