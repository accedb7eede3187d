"""A pretend builder of a few small files, and the violence that is done to it.

Run as `python workshop.py VERB ROOT ...` in a process of its own; tests import it through the fixture `workshop`.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipskip.engines.manifest import Artefact, AxisRange, Dim, Identity, ModelFacts, Port, Role
from clipskip.engines.publish import Draft, build
from clipskip.engines.report import verify
from clipskip.engines.stale import Wanted
from clipskip.errors import ClipskipError

ROLES = ("text-00", "step", "decode")
MODEL = "a" * 64
OTHER_MODEL = "c" * 64


def facts(**changes: Any) -> ModelFacts:
    """The facts of a model, some of them changed."""
    sources = {"unet/model.safetensors": "b" * 64}
    numbers = {"beta_start": 0.00085, "beta_end": 0.012, "train_steps": 1000, "scaling_factor": 0.18215}
    sizes = {"layers": 3, "width": 64, "vocabulary": 49408, "default_size": 64, "size_step": 8}
    names = {"name": "tiny", "family": "sd1", "prediction": "epsilon", "model_sha256": MODEL, "sources": sources}
    return ModelFacts(**{"recommended_clip_skip": 1, **names, **sizes, **numbers, **changes})


def wanted(roles: tuple[str, ...] = ROLES, target: str = "onnx", precision: str = "fp32", **ingredients: str) -> Wanted:
    """What `make` builds, by default for `facts()`."""
    return {
        Identity(Role.parse(role), target, precision): {"model": MODEL, "precision": precision, **ingredients}
        for role in roles
    }


def artefact(role: Role | str, target: str = "onnx", precision: str = "fp32") -> Artefact:
    """An artefact before it is published."""
    inputs = (Port("tokens", "int64", (Dim("R"), 77)), Port("concepts", "float32", (Dim("E"), 64)))
    outputs = (Port("image", "uint8", (Dim("R"), Dim("h", 8), 3)),)
    return Artefact(
        Role.parse(str(role)),
        target,
        precision,
        inputs,
        outputs,
        {"R": AxisRange(1, 2, 8)},
        {"l2": 1e-6},
        {"onnx": "1.2"},
    )


def work(root: Path, what: Wanted, do: Callable[[Draft], object], **options: Any) -> bool:
    """Let `do` fill the draft of a build of `what`. False when it was up to date."""
    _, target, precision, _ = next(iter(what))
    with build(root, f"{target}-{precision}", what, **{"progress": lambda line: None, **options}) as draft:
        if draft is not None:
            do(draft)
    return draft is not None


def make(root: Path, what: Wanted, *, size: int = 3000, pause: float = 0.0, **options: Any) -> bool:
    """Build `what`: a file for each artefact and weights that they share."""

    def do(draft: Draft) -> None:
        content = repr(sorted(what.items())).encode()
        for name in ["weights.bin", "vocab.json", *(f"{identity.role}.onnx" for identity in what)]:
            (draft.folder / name).write_bytes((name.encode() + content) * (1 + size // len(content)))
            time.sleep(pause)
        for identity in what:
            draft.add(artefact(*identity[:3]), [f"{identity.role}.onnx", "weights.bin"])
        if "model" in options:
            draft.tokenizer(["vocab.json"])

    return work(root, what, do, **options)


def rebuild(root: Path, version: str, pause: float = 0.0) -> None:
    """Build all of the store anew because an ingredient has another version."""
    make(root, wanted(version=version), model=facts(), pause=pause)


def die_at_every_step(root: Path) -> None:
    """Die without any clean-up before the first, second, ... file operation of a build until a build survives."""
    rebuild(root, "old")
    for step in range(10_000):
        if in_child(lambda step=step: (die_at_event(step), rebuild(root, f"new {step}"))) == 0:
            break
        assert_valid(root)
    assert step > 50, "the audit hook sees too little"
    assert_nothing_left(root)


def kill_at_random_moments(root: Path, times: int) -> None:
    """kill -9 `times` builds, each somewhere between its begin and its end."""
    rebuild(root, "old")
    began = time.monotonic()
    rebuild(root, "timed", pause=0.004)
    duration = time.monotonic() - began
    for i in range(times):
        killed = in_child(lambda i=i: rebuild(root, f"new {i}", pause=0.004), random.uniform(0, 1.1 * duration))
        assert killed in {0, signal.SIGKILL}, killed
        assert_valid(root)
    rebuild(root, "last")
    assert_nothing_left(root)


def die_at_event(step: int) -> None:
    """Die at once, as if killed, when this process is about to do its `step`-th file operation."""
    left = iter(range(step))

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(("os.", "open", "fcntl.", "shutil.")) and next(left, None) is None:
            os._exit(9)

    sys.addaudithook(hook)


def in_child(work: Callable[[], object], seconds: float | None = None) -> int:
    """The exit status or signal of a forked child that works, killed after `seconds`."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def assert_valid(root: Path) -> None:
    """The store has all its artefacts, all of one build, each intact."""
    results = verify(root)
    assert [problem for _, problem in results] == [None] * (len(ROLES) + 1), results


def assert_nothing_left(root: Path) -> None:
    """No temporary folders, no lock files."""
    assert_valid(root)
    assert not [each for each in os.listdir(root) if each.startswith(".")], os.listdir(root)


def main(verb: str, root: Path, *arguments: str) -> None:
    """Run one verb; ClipskipErrors go to stderr, with their exit status."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if verb == "build":
            print("begin", flush=True)
            options = {"model": facts(), "progress": say, "pause": float(arguments[1])}
            print("built" if make(root, wanted(version=arguments[0]), **options) else "same")
        elif verb == "small":  # on a system that allows no file of more than 64 kB
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
            make(root, wanted(version="big"), model=facts(), size=1 << 18)
        elif verb == "kill":
            kill_at_random_moments(root, int(arguments[0]))
        elif verb == "die":
            die_at_every_step(root)
    except ClipskipError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
