"""clipskip beside others on the CPU: `python -m clipskip.bench.peers CHECKPOINT STORE`.

Every peer is a process of its own that runs when it is told to, on the same weights and the same inputs, turn by turn
with clipskip; how far its results are from ours is in the report, or a ratio would mean nothing. What cannot run is
left out, with the reason. Prints a table for people and ends with one JSON line for machines.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

import clipskip
from clipskip.bench import flops, machine
from clipskip.bench.baseline import AGREE
from clipskip.bench.measure import OWN_PATH, Contenders, Seconds, Took, Turns, difference, noise, summary
from clipskip.bench.peer import NEGATIVE, PEERS, PROMPT, Stage
from clipskip.bench.report import chapter
from clipskip.bench.store import PAUSE, child
from clipskip.engines.files import folder_size
from clipskip.engines.manifest import DECODE, STEP, Role
from clipskip.engines.store import Store
from clipskip.errors import BackendUnavailable

OURS = next(iter(PEERS))
TORCH = "torch==2.13.0"  # another one may be a build for GPUs, of gigabytes
OPTIONAL = {  # peers that get an environment of their own, and what is installed there
    "optimum-onnx": ("optimum-onnx[onnxruntime]", "diffusers", TORCH),
}
SKIPS = (1, 2, 12)  # of whole pictures
ROOM, SHARE = 700 << 20, 1.4  # memory of one peer: its libraries, and times the weights
OURS_FIRST = OWN_PATH + (
    "import clipskip; clipskip.open(sys.argv[2], backend={!r})(sys.argv[3], negative_prompt=sys.argv[4], "
    "width=int(sys.argv[5]), height=int(sys.argv[5]), steps=int(sys.argv[6]), sampler='Euler', seed=1); "
)
THEIRS_FIRST = OWN_PATH + (
    "import torch; from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline as Pipeline; "
    "pipe = Pipeline.from_pretrained(sys.argv[1], dtype=torch.{}, safety_checker=None); "
    "pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config); "
    "pipe(sys.argv[3], negative_prompt=sys.argv[4], width=int(sys.argv[5]), height=int(sys.argv[5]), "
    "num_inference_steps=int(sys.argv[6])); "
)
FIRST_PICTURES = {
    OURS: OURS_FIRST.format("onnxruntime"),
    "clipskip on OpenVINO": OURS_FIRST.format("openvino"),
    "diffusers": THEIRS_FIRST.format("float32"),
    "diffusers bf16": THEIRS_FIRST.format("bfloat16"),
}
IMPORTS = {
    OURS: "import clipskip.pipeline; from clipskip.engines import gpu; gpu.onnxruntime()",
    "diffusers": "import torch; from diffusers import StableDiffusionPipeline",
    "OpenVINO": "sys.modules['openvino_telemetry'] = None; import openvino",  # which would report to its maker
}
INSTALLED = {OURS: "clipskip onnxruntime", "diffusers": "diffusers[torch] transformers", "OpenVINO": "openvino numpy"}


@dataclass
class Peer:
    """A running peer. Close it."""

    name: str
    command: Sequence[str]
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(self.command, text=True, bufsize=1, **pipes)  # type: ignore[call-overload]

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """Its answer. BackendUnavailable with its reason, or where it has ended."""
        line = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{json.dumps({'do': do, **what})}\n")
            line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"ended with status {self._process.wait()}"}
        if "error" in answer:
            raise BackendUnavailable(answer["error"], field=self.name)
        return answer

    def ready(self, stage: Stage) -> bool:
        """Make a stage ready; False where the peer has none of that kind. BackendUnavailable."""
        answer = self.ask("open", **asdict(stage))
        self.facts = answer["facts"]
        return bool(answer["ready"])

    def run(self, skip: int) -> Took:
        """Run what is ready, once. BackendUnavailable."""
        return Took(self.ask("run", skip=skip)["seconds"])

    def result(self, skip: int) -> Any:
        """What it gives, as an array. BackendUnavailable."""
        with tempfile.TemporaryDirectory() as folder:
            self.ask("output", path=f"{folder}/result.npy", skip=skip)
            return np.load(f"{folder}/result.npy")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass
class Comparison:
    """One run over all stages: by row and peer the seconds, and ours of the same rounds; why others are left out."""

    checkpoint: Path
    store: Path
    stages: Sequence[Stage]
    rounds: int
    until: float
    say: Callable[[str], None] = print
    seconds: dict[str, dict[str, Seconds]] = field(default_factory=dict)
    ours: dict[str, dict[str, Seconds]] = field(default_factory=dict)
    apart: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, Mapping[str, str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    paired: dict[int, Seconds] = field(default_factory=dict)  # our pictures by clip skip, round by round

    def wave(self, names: Sequence[str], pythons: Mapping[str, str], later: int) -> None:
        """All stages of these peers and ours; `later`: how many such waves are to come."""
        script = str(Path(__file__).with_name("peer.py"))
        arguments = [str(self.checkpoint), str(self.store)]
        with ExitStack() as stack:
            peers = []
            for name in names:
                peers.append(Peer(name, [pythons.get(name, sys.executable), script, name, *arguments]))
                stack.callback(peers[-1].close)
            for number, stage in enumerate(self.stages):
                self.say(f"{stage.part} {stage.size}: {', '.join(names)}")
                parts = (later + 1) * len(self.stages) - number + 1  # the last is for processes that start
                self.compare(stage, peers, time.monotonic() + (self.until - time.monotonic()) / parts)
            self.facts |= {peer.name: peer.facts for peer in peers}

    def compare(self, stage: Stage, peers: Sequence[Peer], until: float) -> None:
        """One stage by all who can; who fails is left out, and the others begin anew."""
        ready = list(peers)
        while True:
            try:
                ready = [peer for peer in ready if peer.ready(stage)]
                results = {peer.name: {skip: peer.result(skip) for skip in stage.skips} for peer in ready}
                runs = {(peer.name, skip): partial(peer.run, skip) for skip in stage.skips for peer in ready}
                contenders: Contenders = {f"{name}\n{stage.name(skip)}": run for (name, skip), run in runs.items()}
                taken = Turns(self.rounds, 1.0, PAUSE, until).take(contenders)
                break
            except BackendUnavailable as error:
                if error.field == OURS:
                    raise
                self.left_out[f"{stage.part} {stage.size}, {error.field}"] = error.message
                ready = [peer for peer in ready if peer.name != error.field]
        for key, seconds in taken.items():
            name, row = key.split("\n")
            self.seconds.setdefault(row, {}).setdefault(name, []).extend(seconds)
            self.ours.setdefault(row, {})[name] = taken[f"{OURS}\n{row}"]
        for skip in stage.skips:
            row, mine = stage.name(skip), results[OURS][skip]
            own = {name: relative(result[skip], mine) for name, result in results.items() if name != OURS}
            self.apart.setdefault(row, {}).update(own)
            if stage.part == "picture":
                self.paired.setdefault(skip, []).extend(taken[f"{OURS}\n{row}"])

    def ratios(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By row and peer: its median over ours of the same rounds, and that of their first and second half alone."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for row, peers in self.seconds.items():
            for name, seconds in peers.items():
                pairs = list(zip(seconds, self.ours[row][name], strict=False))
                middle = len(pairs) // 2
                halves = [over(pairs[:middle]), over(pairs[middle:])] if middle > 1 else []
                if name != OURS:
                    found.setdefault(row, {})[name] = {"ratio": over(pairs), "halves": halves}
        return found

    def by_skip(self) -> dict[str, dict[str, Any]]:
        """Whole pictures of ours: how much longer than at clip skip 1, in seconds, and whether that can be told."""
        found = {}
        for skip, seconds in self.paired.items():
            apart, error = difference(seconds, self.paired[1])
            told = {"longer_ms": round(1000 * apart, 3), "error_ms": round(1000 * error, 3)}
            found[str(skip)] = {**summary(seconds), **(told if skip > 1 else {}), "told": abs(apart) > 2 * error}
        return found


def over(pairs: Sequence[tuple[float, ...]]) -> float:
    """The median of the first over that of the second."""
    theirs, ours = np.median(pairs, axis=0)
    return round(float(theirs / ours), 3)


def relative(result: Any, ours: Any) -> float:
    """How far a result is from ours, in ours' size (L2)."""
    if result.shape != ours.shape:
        return inf
    return round(float(np.linalg.norm(result - ours)) / float(np.linalg.norm(ours)), 9)


def not_reproduced(ratios: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The ratios that one half of the rounds does not confirm for the other."""
    return [
        f"{row}, {name} ({' and '.join(map(str, found['halves']))})"
        for row, peers in ratios.items()
        for name, found in peers.items()
        if found["halves"] and max(found["halves"]) > (1 + AGREE) * min(found["halves"])
    ]


def starts(comparison: Comparison, stage: Stage) -> dict[str, Any]:
    """Processes from start to end: importing, and the first picture with its memory."""
    said: dict[str, str] = {}

    def run(name: str, code: str, *arguments: str) -> None:
        said[name] = child([sys.executable, "-c", code, *arguments])

    there = [name for name, facts in comparison.facts.items() if facts]  # what could be loaded at all
    imported = {"Python alone": "", **{name: IMPORTS[name] for name in there if name in IMPORTS}}
    imports = {name: partial(run, name, OWN_PATH + code) for name, code in imported.items()}
    common = str(comparison.checkpoint), str(comparison.store), PROMPT, NEGATIVE, str(stage.size), str(stage.steps)
    codes = {name: f"{FIRST_PICTURES[name]}{machine.SAY_MEMORY}" for name in there if name in FIRST_PICTURES}
    pictures = {name: partial(run, name, code, *common) for name, code in codes.items()}
    turns = Turns(comparison.rounds, 0.0, PAUSE, comparison.until)
    taken = {"import": turns.take(imports), "first picture of a process": turns.take(pictures, warmups=0)}
    rows = {row: {name: summary(seconds) for name, seconds in peers.items()} for row, peers in taken.items()}
    return {**rows, "memory": {name: machine.memory(said[name]) for name in codes}}


def installed(requirements: str) -> int:
    """Bytes of these distributions and of all that they require."""
    from packaging.requirements import Requirement

    waiting, sizes = [Requirement(each) for each in requirements.split()], dict[str, int]()
    while waiting:
        asked = waiting.pop()
        with suppress(metadata.PackageNotFoundError):
            found = metadata.distribution(asked.name)
            first = found.name not in sizes
            sizes[found.name] = sum(file.size or 0 for file in found.files or ())
            for line in (found.requires or ()) if first or asked.extras else ():
                needed = Requirement(line)
                if needed.marker is None or any(needed.marker.evaluate({"extra": x}) for x in ("", *asked.extras)):
                    waiting += [needed] if needed.name not in sizes or needed.extras else []
    return sum(sizes.values())


def environment(name: str, folder: Path) -> str:
    """The interpreter of an optional peer's own environment, which is made where it is missing. BackendUnavailable."""
    python, done = folder / name / "bin" / "python", folder / name / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *OPTIONAL[name]]
        if (made := subprocess.run(pip, capture_output=True, text=True)).returncode:
            lines = [line for line in made.stderr.splitlines() if "error" in line.lower()] or ["pip failed"]
            raise BackendUnavailable(f"does not install: {lines[-1].strip()[:200]}")
        done.touch()
    return str(python)


def waves(names: Sequence[str], weights: int) -> list[list[str]]:
    """The peers in groups that fit into this machine's memory, each with ours."""
    each, free = ROOM + SHARE * weights, machine.available()
    others = [name for name in names if name != OURS]
    size = len(others) if free is None else max(1, int(free / each) - 1)
    return [[OURS, *others[start : start + size]] for start in range(0, len(others), size)]


def measure(comparison: Comparison, names: Sequence[str], folder: Path) -> dict[str, Any]:
    """The report, ready for JSON."""
    watch, pythons = machine.Watch(), dict[str, str]()
    model = Store(comparison.store).manifest().model
    for name in OPTIONAL.keys() & {*names}:
        comparison.say(f"installing {name}")
        try:
            pythons[name] = environment(name, folder)
        except (BackendUnavailable, OSError, subprocess.CalledProcessError) as error:
            comparison.left_out[name] = str(error)
    names = [name for name in names if name not in comparison.left_out]
    weights = sum(file.size for role in (STEP, DECODE, Role("text", model.layers))
                  for file in Store(comparison.store).find(role, "onnx", "fp32").files)  # fmt: skip
    groups = waves(names, weights)
    for number, group in enumerate(groups):
        comparison.wave(group, pythons, len(groups) - number - 1)
    comparison.say("imports and first pictures of processes")
    begun, ratios, seen = starts(comparison, comparison.stages[-1]), comparison.ratios(), watch.report()
    stages = {row: {name: summary(taken) for name, taken in peers.items()} for row, peers in comparison.seconds.items()}
    flat = {f"{row}, {name}": figures for row, peers in stages.items() for name, figures in peers.items()}
    sizes = {name: installed(INSTALLED[name]) for name in INSTALLED if comparison.facts.get(name)}
    picture = comparison.stages[-1]
    return {
        "bench": "peers", "model": model.name, "version": clipskip.__version__, "machine": machine.facts(),
        "size": picture.size, "steps": picture.steps, "layers": model.layers, "peers": comparison.facts, "load": seen,
        "left_out": comparison.left_out, "stages": stages, "ratios": ratios, "apart": comparison.apart, **begun,
        "by_skip": comparison.by_skip(), "not_reproduced": not_reproduced(ratios),
        "doubts": {**{said: [] for said in machine.warnings(seen)}, **noise(flat, comparison.rounds)},
        "installed": sizes | {name: folder_size(folder / name) for name in pythons},
        "counts": {"size": model.default_size, **flops.counts(Store(comparison.store), model.default_size)},
        "rates": machine.peak_rates(),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="clipskip.bench.peers", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="in diffusers' layout")
    parser.add_argument("store", type=Path, help="exported from it, in fp32")
    parser.add_argument("--peers", default=",".join(PEERS), help="some of: %(default)s")
    parser.add_argument("--sizes", default="256,512", help="of the step; the decoder has the first (default: 256,512)")
    parser.add_argument("--size", type=int, help="of pictures (default: the model's own, at most 256)")
    parser.add_argument("--steps", type=int, default=20, help="of pictures")
    parser.add_argument("--rounds", type=int, default=10, help="at least 5")
    parser.add_argument("--minutes", type=float, default=15, help="about how long, without installing and compiling")
    parser.add_argument("--folder", type=Path, default=Path("build/peers"), help="environments of optional peers")
    parser.add_argument("--out", type=Path, help="write the report there, as JSON")
    args = parser.parse_args(arguments)
    model = Store(args.store).manifest().model
    names = args.peers.split(",")
    if strange := [name for name in names if name not in PEERS]:
        parser.error(f"{strange[0]!r} is no peer; there are {', '.join(PEERS)}")
    sizes, own = [int(size) for size in args.sizes.split(",")], args.size or min(model.default_size, 256)
    stages = [Stage("text", own, list(range(1, model.layers + 2)), 0)]
    stages += [Stage("step", size, [1], 1) for size in sizes] + [Stage("decode", sizes[0], [1], 1)]
    stages.append(Stage("picture", own, [skip for skip in SKIPS if skip <= model.layers + 1], args.steps))
    until = time.monotonic() + 60 * args.minutes
    comparison = Comparison(args.checkpoint.absolute(), args.store.absolute(), stages, max(5, args.rounds), until)
    report = measure(comparison, [OURS, *(name for name in names if name != OURS)], args.folder.absolute())
    print("\n".join(chapter(report["model"], None, report)))
    line = json.dumps(report)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(f"{line}\n")
    print(line)


if __name__ == "__main__":
    main()
